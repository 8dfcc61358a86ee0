"""Files of a finished run are damaged one at a time: noticed, or without effect on any result."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.harness import (
    STEPS,
    Driver,
    Ended,
    Toy,
    driven,
    files_of,
    final_state,
    is_sentence,
)

LONGER = STEPS + 2
WRITTEN = {"run.lock", "run.lock.owner"}  # of no content


def cut(path: Path, draw: random.Random) -> None:
    """Keep the first half."""
    del draw
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, draw: random.Random) -> None:
    """Keep nothing."""
    del draw
    path.write_bytes(b"")


def flip(path: Path, draw: random.Random) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def remove(path: Path, draw: random.Random) -> None:
    """Delete it."""
    del draw
    path.unlink()


def replace_by_folder(path: Path, draw: random.Random) -> None:
    """Put an empty folder in its place."""
    del draw
    path.unlink()
    path.mkdir()


KINDS: tuple[Callable[[Path, random.Random], None], ...] = (
    cut,
    empty,
    flip,
    remove,
    replace_by_folder,
)


@dataclass
class Readers:
    """The commands that read a run, and what they give of the undamaged one.

    Attributes:
        counts: of their outcomes on damaged ones; `others` describes each that should not be.
    """

    toy: Toy
    driver: Driver
    counts: Counter[str] = field(default_factory=Counter)
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = self.toy.top / "out"
        self.state = self.toy.top / "done"
        self.toy.put(None)
        assert self.driver.do(self.toy.train()).code == 0
        shutil.copytree(self.toy.work, self.state)
        self.expected = {}
        for name in self.words():
            ended, content = self.read(name)
            assert ended.code == 0, ended.text
            self.expected[name] = content

    def words(self) -> dict[str, list[str]]:
        """The words of each command; the last one writes into the run."""
        run = str(self.toy.run)
        return {
            "export": ["export", run, "--out", str(self.out)],
            "report": ["report", run, "--json"],
            "resume": self.toy.train("--resume", f"train.length={LONGER} steps"),
        }

    def read(self, name: str) -> tuple[Ended, object]:
        """Run a command; return how it ended, and what it gave."""
        shutil.rmtree(self.out, ignore_errors=True)
        ended = self.driver.do(self.words()[name])
        if ended.code != 0:
            return ended, None
        if name == "export":
            return ended, files_of(self.out)
        if name == "report":
            return ended, ended.text
        return ended, final_state(self.toy.run, LONGER)

    def damage(self, path: str, kind: Callable[[Path, random.Random], None], seed: int) -> None:
        """Damage one file of the run, and see what each command makes of it."""
        case = f"{path}, {kind.__name__}"
        self.toy.put(self.state)
        kind(self.toy.run / path, random.Random(seed))
        self.counts["damaged files"] += 1
        for name in self.words():
            ended, content = self.read(name)
            self.counts["read"] += 1
            if is_sentence(ended):
                self.counts["refused"] += 1
            elif ended.code == 0 and content == self.expected[name]:
                self.counts["same result"] += 1
            elif ended.code == 0 and name == "report" and any_problem(ended.text):
                self.counts["reported on the page"] += 1
            else:
                fault = f"exit {ended.code}: {ended.text[-1500:]}" if ended.code else "differs"
                self.others.append(f"{case}, {name}: {fault}")


def any_problem(text: str) -> bool:
    """Return whether a report's JSON says what is missing or broken."""
    return any(run["problems"] for run in json.loads(text)["runs"])


def damage(top: Path, share: float) -> Counter[str]:
    """Damage a share of all files in all ways; return the counts."""
    with driven(top, faults=False) as (toy, driver):
        readers = Readers(toy, driver)
        paths = [path for path in files_of(readers.state / "runs" / "tiny") if path not in WRITTEN]
        cases = [(path, kind) for path in paths for kind in KINDS]
        draw = random.Random(0)
        for number, (path, kind) in enumerate(draw.sample(cases, round(share * len(cases)))):
            readers.damage(path, kind, number)
    print(dict(readers.counts))
    assert readers.others == []
    return readers.counts


@pytest.mark.slow
def test_a_damaged_file_is_noticed_or_changes_nothing(tmp_path):
    counts = damage(tmp_path, 0.05)
    assert counts["damaged files"] >= 8
    assert counts["refused"] >= 3


@pytest.mark.full
def test_every_file_damaged_in_five_ways(tmp_path):
    counts = damage(tmp_path, 1.0)
    assert counts["damaged files"] >= 200
