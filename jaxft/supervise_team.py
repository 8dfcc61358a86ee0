"""How the processes of a run end together: each parent tells, process 0's judges, all hear."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxft.cluster import Cluster
from jaxft.supervise_roll import Line, Member, answer_roll, call_roll

STOPPED = 128 + signal.SIGTERM
# How a supervised process ends that could not compute with the others: perhaps since one is gone.
COMPUTATION_FAILED = 76
# Seconds in which the cause of a failure may still be told, after its first consequence was.
SETTLE, SETTLE_CONSEQUENCE = 1.0, 6.0
STOP_SECONDS = 300.0  # from the first that has saved and stopped to the last


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        process: its number.
        code: its exit code, negative for a signal; None where its parent is gone too.
        why: the rest of a sentence that begins with its name.
        blames: processes that it lost, where that is why it ended; None where it ended by itself.
    """

    process: int
    code: int | None
    why: str
    blames: tuple[int, ...] | None = None

    @property
    def fine(self) -> bool:
        """Whether it was through, or was asked to stop and did."""
        return self.code in (0, STOPPED)

    @property
    def rank(self) -> int:
        """How far this is from being the cause, where several have ended."""
        if self.blames is not None:
            return 4
        if self.code is None:
            return 3
        return 0 if self.code < 0 else 1 if self.code == 2 else 2


def _end(message: dict[str, Any]) -> End:
    blames = message["blames"]
    return End(**{**message, "blames": None if blames is None else tuple(blames)})


class Team:
    """What one parent knows of all.

    Attributes:
        members: every process, in order.
        first: the one whose end ends the run; None while and where all is well.
    """

    def __init__(self, members: list[Member]):
        self.members = members
        self.first: End | None = None
        self.over = threading.Event()

    def tell(self, end: End) -> None:
        """Say how this host's process ended."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until all have ended well, or the first that did not is known."""
        self.over.wait()

    def _settle(self, first: End | None) -> None:
        self.first = first
        self.over.set()


class _Other(Team):
    """Beside any process but the first."""

    def __init__(self, members: list[Member], line: Line):
        super().__init__(members)
        self._line = line
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, end: End) -> None:
        self._line.send(asdict(end))

    def _listen(self) -> None:
        message = self._line.receive()
        if message is None:
            self._settle(End(0, None, "is gone with its parent"))
        else:
            self._settle(None if message["first"] is None else _end(message["first"]))


class _First(Team):
    """Beside process 0: hears all, and judges."""

    def __init__(self, members: list[Member], lines: dict[int, Line]):
        super().__init__(members)
        self._lines = lines
        self._told: queue.Queue[End] = queue.Queue()
        for process, line in lines.items():
            threading.Thread(target=self._listen, args=(process, line), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def tell(self, end: End) -> None:
        self._told.put(end)

    def _listen(self, process: int, line: Line) -> None:
        while (message := line.receive()) is not None:
            self._told.put(_end(message))
        self._told.put(End(process, None, "is gone with its parent"))

    def _judge(self) -> None:
        ends: dict[int, End] = {}
        limit: float | None = None  # of the time in which all have to have stopped
        while len(ends) < len(self.members) and all(end.fine for end in ends.values()):
            try:
                wait = None if limit is None else max(limit - time.monotonic(), 0)
                end = self._told.get(timeout=wait)
            except queue.Empty:
                late = min(set(range(len(self.members))) - ends.keys())
                ends[late] = End(late, None, f"did not stop within {STOP_SECONDS:.0f} s")
                continue
            ends.setdefault(end.process, end)
            if end.code == STOPPED and limit is None:
                limit = time.monotonic() + STOP_SECONDS
        first = None
        if not all(end.fine for end in ends.values()):
            self._hear_more(ends)
            first = cause(ends)
        for line in self._lines.values():
            line.send({"first": None if first is None else asdict(first)})
        self._settle(first)

    def _hear_more(self, ends: dict[int, End]) -> None:
        """Wait a moment for what may have been first and comes later."""
        begun = time.monotonic()
        while len(ends) < len(self.members):
            known = min(end.rank for end in ends.values() if not end.fine)
            limit = begun + (SETTLE if known < 3 else SETTLE_CONSEQUENCE)
            try:
                end = self._told.get(timeout=max(limit - time.monotonic(), 0.01))
            except queue.Empty:
                return
            ends.setdefault(end.process, end)


def cause(ends: dict[int, End]) -> End:
    """The end that the others follow from."""
    failed = [end for end in ends.values() if not end.fine]
    found = min(failed, key=lambda end: (end.rank, end.process))
    if found.blames:
        lost = found.blames[0]
        return replace(found, process=lost, code=None, why="stopped answering", blames=())
    return found


@contextlib.contextmanager
def join(cluster: Cluster, seconds: float) -> Iterator[Team]:
    """The team of a run, once all of it is there.

    Args:
        cluster: the run's processes.
        seconds: to wait for them.

    Raises:
        UserError: not all came.
    """
    team: Team
    if cluster.process == 0:
        members, lines = call_roll(cluster, seconds)
        team = _First(members, lines)
    else:
        members, line = answer_roll(cluster, seconds)
        lines, team = {0: line}, _Other(members, line)
    try:
        yield team
    finally:
        for line in lines.values():
            line.close()
