"""jaxft as a process of its own: started, watched, and stopped at a chosen moment."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jaxft.config.load import Config, to_yaml
from tests.support.xla import xla_flags


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, shared by the tests of a process: a program is compiled once."""
    folder = tmp_path_factory.getbasetemp() / "jaxft-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFT_CACHE", str(folder))
        yield folder


@pytest.fixture
def ended():
    """Nothing that a test has started outlives it, also where it fails."""
    yield
    for launched in STARTED:
        launched.kill()
    STARTED.clear()


def write_config(config: Config, path: Path) -> str:
    """The config as a file that the command line reads."""
    path.write_text(to_yaml(config.dump()))
    return str(path)


STARTED: list["Launched"] = []


class Launched:
    """`jaxft` with these words, on one device unless `variables` say otherwise.

    Attributes:
        said: what it has printed so far, both streams.
    """

    def __init__(self, folder: Path, *words: str, cwd: Path | None = None, **variables: str):
        self._output = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
        environment = {**os.environ, "XLA_FLAGS": xla_flags(1), "COLUMNS": "200", **variables}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jaxft", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
            )

        STARTED.append(self)

    @property
    def said(self) -> str:
        return self._output.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    def child(self) -> int:
        """The process id of what it has started, once that is there."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        self.until(lambda: path.read_text().strip() != "")
        return int(path.read_text().split()[0])

    def until(self, moment: Callable[[], bool], seconds: float = 600) -> None:
        """Wait for a moment of its life."""
        end = time.monotonic() + seconds
        while not moment():
            assert self._process.poll() is None, f"it ended too early:\n{self.said}"
            assert time.monotonic() < end, f"the moment did not come:\n{self.said}"
            time.sleep(0.001)

    def stop(self, number: signal.Signals, seconds: float = 60) -> int:
        """Send a signal, and give the exit code that follows within so many seconds."""
        assert self._process.poll() is None, f"it ended too early:\n{self.said}"
        self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there after {seconds} s:\n{self.said}") from None

    def kill(self) -> None:
        """Make an end of it, if it is there."""
        self._process.kill()
        self._process.wait()

    def end(self, seconds: float = 400) -> int:
        """Wait for its own end, and give the exit code; it is ended where that does not come."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there after {seconds} s:\n{self.said}") from None


def launch_hosts(
    folder: Path,
    count: int,
    *words: str,
    devices: int = 1,
    last_words: Sequence[str] = (),
    last_variables: Mapping[str, str] | None = None,
    last_cwd: Path | None = None,
    **variables: str,
) -> list[Launched]:
    """The same command as several processes of this machine, each a host to the others.

    Args:
        folder: where each process's output goes.
        count: how many.
        words: what each is given.
        devices: of each.
        last_words, last_variables: what the last one is given besides.
        last_cwd: where it stands; None for where all do.
        variables: of the environment, of each.
    """
    coordinator, supervisor = free_ports(2)
    about = {
        "XLA_FLAGS": xla_flags(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{coordinator}",
        "JAXFT_SUPERVISOR_PORT": str(supervisor),
        "JAX_NUM_PROCESSES": str(count),
        **variables,
    }
    started = [
        Launched(folder, *words, cwd=None, **about, JAX_PROCESS_ID=str(n)) for n in range(count - 1)
    ]
    about |= {"JAX_PROCESS_ID": str(count - 1), **(last_variables or {})}
    return [*started, Launched(folder, *words, *last_words, cwd=last_cwd, **about)]


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind that `metrics.jsonl` holds, whole lines only."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder; empty where it is not there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
