"""The toy run of the fault tests, and the process that runs jaxft's commands with faults."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.launch import write_config
from tests.support.tiny import tiny_checkpoint, tiny_config
from tests.support.xla import xla_flags

COUNT, KILL, FAIL, COPY = range(4)  # the modes of faults.c
NO_FAULT = {"folder": "", "copies": "", "mode": COUNT, "at": 0, "step": 1, "error": 0}
SOURCE = Path(__file__).with_name("faults.c")
STEPS = 6


@dataclass
class Toy:
    """A run of a few hundred parameters, and the folder that faults happen in.

    Attributes:
        top: holds the checkpoint, the rows and the config, which stay as they are.
        work: holds the runs and the cache of tokens.
    """

    top: Path
    config: str = ""

    def __post_init__(self) -> None:
        sizes = {"hidden_size": 8, "intermediate_size": 8}
        layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
        tiny_checkpoint(self.top / "checkpoint", **sizes, **layers)
        config = tiny_config(
            self.top,
            run={"dir": str(self.work / "runs")},
            data={"cache": str(self.work / "cache")},
            train={
                "length": f"{STEPS} steps",
                "evaluate_every": f"{STEPS // 2} steps",
                "log_every": 1,
                "ema": 0.9,
            },
            checkpoint={"every": 2, "keep": 1},
        )
        self.config = write_config(config, self.top / "tiny.yaml")

    @property
    def work(self) -> Path:
        return self.top / "work"

    @property
    def run(self) -> Path:
        return self.work / "runs" / "tiny"

    def put(self, state: Path | None) -> None:
        """Replace the work folder by a copy of `state`; by an empty one where it is None."""
        shutil.rmtree(self.work, ignore_errors=True)
        if state is None:
            self.work.mkdir()
        else:
            shutil.copytree(state, self.work, symlinks=True)

    def train(self, *words: str) -> list[str]:
        """The words of a train command on this run."""
        return ["train", self.config, "--quiet", *words]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, its calls below the work folder."""

    code: int
    text: str
    calls: int


class Driver:
    """A process that runs commands; see `driver.py`."""

    def __init__(self, toy: Toy, library: Path | None):
        self._toy = toy
        variables = {
            **({} if library is None else {"LD_PRELOAD": str(library)}),
            "XLA_FLAGS": xla_flags(1),
            "COLUMNS": "200",
            "JAXFT_CACHE": str(toy.top / "user-cache"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self._answer()

    def do(self, words: list[str], *, fork: bool = False, **fault: Any) -> Ended:
        """Run a command.

        Args:
            words: after `jaxft`.
            fork: in a process of its own, since the fault kills it; before any other command.
            fault: of `NO_FAULT`; the calls below the work folder are counted in any case.
        """
        output = self._toy.top / "output.txt"
        named = {
            key: str(value) if isinstance(value, Path) else value for key, value in fault.items()
        }
        asked = {
            "words": words,
            "fork": fork,
            "output": str(output),
            "fault": {**NO_FAULT, "folder": str(self._toy.work), **named},
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        text = output.read_text(errors="replace")
        if answer is None:  # the process ended
            return Ended(self._process.wait(), text, 0)
        return Ended(answer["code"], text, answer["calls"])

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


def compiler() -> str | None:
    """The system's C compiler; None where there is none, or the system is not Linux."""
    return shutil.which("cc") if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """Compile `faults.c`."""
    library = folder / "faults.so"
    words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(words, check=True)
    return library


def final_state(run: Path, step: int = STEPS) -> dict[str, Any]:
    """What a run came to: the checksum of each leaf of its last state, predictions and scores."""
    description = run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    leaves = json.loads(description.read_text())["custom_metadata"]["leaves"]
    names = ("result.json", "predictions-eval.jsonl", "predictions-test.jsonl")
    return {"leaves": leaves} | {name: (run / name).read_bytes() for name in names}


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder: path -> content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def leftovers(work: Path) -> list[str]:
    """The names below the work folder that only a process that was killed leaves."""
    marks = (".tmp", ".old-", "orbax-checkpoint-tmp", ".part", ".weights-")
    names = [str(path.relative_to(work)) for path in (work / "runs").rglob("*")]
    return sorted(name for name in names if any(mark in name for mark in marks))


def is_sentence(ended: Ended) -> bool:
    """Return whether a command was refused with one sentence, and nothing else went wrong."""
    lines = [line for line in ended.text.splitlines() if line.startswith("jaxft: ")]
    return ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.text


@contextlib.contextmanager
def driven(top: Path, *, faults: bool) -> Iterator[tuple[Toy, Driver]]:
    """Yield the toy run and its process, with the library of faults or without it."""
    toy = Toy(top)
    driver = Driver(toy, build(top) if faults else None)
    try:
        yield toy, driver
    finally:
        driver.close()
