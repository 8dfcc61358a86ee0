"""jaxft as a process of its own: started, watched, and stopped at a chosen moment."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxft.config import Config, to_yaml


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache folder, shared by the tests of a process: a program is compiled once."""
    folder = tmp_path_factory.getbasetemp() / "jaxft-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFT_CACHE", str(folder))
        yield folder


def write_config(config: Config, path: Path) -> str:
    """The config as a file that the command line reads."""
    path.write_text(to_yaml(config.dump()))
    return str(path)


class Launched:
    """`jaxft` with these words, on one device.

    Attributes:
        said: what it has printed so far, both streams.
    """

    def __init__(self, folder: Path, *words: str):
        self._output = folder / f"output-{len(list(folder.glob('output-*')))}.txt"
        environment = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "200"}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jaxft", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @property
    def said(self) -> str:
        return self._output.read_text()

    def until(self, moment: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a moment of its life."""
        end = time.monotonic() + seconds
        while not moment():
            assert self._process.poll() is None, f"it ended too early:\n{self.said}"
            assert time.monotonic() < end, f"the moment did not come:\n{self.said}"
            time.sleep(0.001)

    def stop(self, number: signal.Signals, seconds: float = 10) -> int:
        """Send a signal, and give the exit code that follows within so many seconds."""
        assert self._process.poll() is None, f"it ended too early:\n{self.said}"
        self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"still there after {seconds} s:\n{self.said}") from None

    def end(self, seconds: float = 180) -> int:
        """Wait for its own end, and give the exit code."""
        return self._process.wait(seconds)


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
