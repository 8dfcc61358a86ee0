"""Commands are killed, or their disk fails, at the n-th of their file system calls."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.harness import (
    COPY,
    FAIL,
    KILL,
    Driver,
    Ended,
    Toy,
    compiler,
    driven,
    files_of,
    final_state,
    is_sentence,
    leftovers,
)

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="the faults are a C library that is preloaded, on Linux with a `cc`"
)
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EMFILE": errno.EMFILE}
# How often each command is killed in a fork, is killed as far as its files tell (a copy of them at
# the call), and meets each error.
FEW = {
    "fork": {"train": 1},
    "kill": {"train": 3, "resume": 1, "overwrite": 2, "export": 1, "report": 1},
    "error": {"train": 1, "overwrite": 1},
}
MANY = {
    "fork": {"train": 10},
    "kill": {"train": 70, "resume": 40, "overwrite": 50, "export": 30, "report": 6},
    "error": {"train": 14, "resume": 8, "overwrite": 8, "export": 4},
}


@dataclass
class Commands:
    """The commands that meet faults, each with the state of the work folder that it begins from.

    Attributes:
        calls: how many calls below the work folder each of them makes, undisturbed.
        counts: of the outcomes; `others` describes each that should not be.
    """

    toy: Toy
    driver: Driver
    calls: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        run = str(self.toy.run)
        self.words = {
            "train": self.toy.train(),
            "resume": self.toy.train("--resume"),
            "overwrite": self.toy.train("--overwrite"),
            "export": ["export", run],
            "report": ["report", run],
        }

    def state(self, name: str) -> Path | None:
        """The work folder that a command begins with."""
        if name == "train":
            return None
        return self.toy.top / ("half" if name == "resume" else "done")

    def prepare(self) -> None:
        """Run each command undisturbed."""
        for name, words in self.words.items():
            self.toy.put(self.state(name))
            if name == "train":
                ended = self.copied(name, self.toy.top / "halves", 2)
                halves = sorted(
                    (self.toy.top / "halves").iterdir(), key=lambda path: int(path.name)
                )
                halves[len(halves) // 2].rename(self.toy.top / "half")
                shutil.copytree(self.toy.work, self.toy.top / "done")
                self.expected = final_state(self.toy.run)
            else:
                ended = self.driver.do(words)
            assert ended.code == 0, ended.text
            self.calls[name] = ended.calls
            if name == "export":
                self.exported = files_of(self.toy.run / "export")

    def copied(self, name: str, into: Path, count: int) -> Ended:
        """Run a command; copy the work folder at some of its calls, as a kill would leave it."""
        into.mkdir()
        self.toy.put(self.state(name))
        step = max(1, self.calls.get(name, 1600) // count)
        return self.driver.do(self.words[name], mode=COPY, at=step // 2 + 1, step=step, copies=into)

    def check(self, case: str, name: str) -> None:
        """What a command left is completed by the next one, without a mend by hand."""
        trains = name in ("train", "resume", "overwrite")
        ended = self.driver.do(self.toy.train("--resume") if trains else self.words[name])
        faults = []
        if ended.code != 0:
            faults.append(f"exit {ended.code}: {ended.text[-1000:]}")
        elif final_state(self.toy.run) != self.expected:
            faults.append("another result")
        elif name == "export" and files_of(self.toy.run / "export") != self.exported:
            faults.append("another export")
        elif name != "report" and leftovers(self.toy.work):
            faults.append(f"left over: {leftovers(self.toy.work)}")
        self.others += [f"{case}: {fault}" for fault in faults]


def kill(commands: Commands, name: str, count: int) -> None:
    """Kill a command at `count` of its calls, spread evenly."""
    into = commands.toy.top / f"copies-{name}"
    assert commands.copied(name, into, count).code == 0
    copies = sorted(into.iterdir(), key=lambda path: int(path.name))
    for copy in copies[:count]:
        commands.toy.put(copy)
        commands.counts["kills"] += 1
        commands.check(f"{name} killed at call {copy.name}", name)
        shutil.rmtree(copy)


def fail(commands: Commands, name: str, error: str, count: int) -> None:
    """Have a command's calls fail from one of `count` calls on, spread evenly."""
    for number in range(count):
        at = 1 + (2 * number + 1) * commands.calls[name] // (2 * count)
        commands.toy.put(commands.state(name))
        ended = commands.driver.do(commands.words[name], mode=FAIL, at=at, error=ERRORS[error])
        case = f"{name} with {error} from call {at}"
        commands.counts[f"{error}, exit {ended.code}"] += 1
        if ended.code != 0 and not is_sentence(ended):
            commands.others.append(f"{case}: exit {ended.code}: {ended.text[-3000:]}")
        aside = [path.name for path in (commands.toy.work / "runs").glob("tiny.old-*")]
        if aside and not any(old in ended.text for old in aside):
            commands.others.append(f"{case}: {aside} is not told: {ended.text[-1000:]}")
        commands.check(case, name)


def faults(top: Path, many: dict[str, dict[str, int]]) -> Counter[str]:
    """Kill and fail the commands as often as `many` says; return the counts."""
    with driven(top, faults=True) as (toy, driver):
        commands = Commands(toy, driver)
        (forked,) = many["fork"].values()
        for number in range(forked):  # before the driver itself computes
            toy.put(None)
            at = 1600 * (number + 1) // (forked + 1)
            assert driver.do(commands.words["train"], fork=True, mode=KILL, at=at).code == -9
            shutil.copytree(toy.work, top / f"forked-{number}")
        commands.prepare()
        for number in range(forked):
            toy.put(top / f"forked-{number}")
            commands.counts["kills"] += 1
            commands.check(f"train killed for the {number + 1}. time", "train")
        for name, count in many["kill"].items():
            kill(commands, name, count)
        for error in ERRORS:
            for name, count in many["error"].items():
                fail(commands, name, error, count)
    print(dict(commands.counts))
    assert commands.others == []
    return commands.counts


@pytest.mark.slow
def test_what_is_killed_or_fails_is_completed_bit_for_bit_by_the_next_start(tmp_path):
    counts = faults(tmp_path, FEW)
    assert counts["kills"] == 9
    assert sum(count for name, count in counts.items() if "exit 2" in name) >= 5


@pytest.mark.full
def test_two_hundred_kills_and_a_hundred_failing_disks(tmp_path):
    counts = faults(tmp_path, MANY)
    assert counts["kills"] >= 200
    assert sum(count for name, count in counts.items() if "exit 2" in name) >= 90
