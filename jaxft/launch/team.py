"""How the processes of a run end together: each parent tells, process 0's judges, all hear."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxft.launch.cluster import Cluster
from jaxft.launch.roll import Line, Member, answer_roll, call_roll

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

    Args:
        members: every process, in order.
        tell: says how this host's process ended.

    Attributes:
        first: the one whose end ends the run; None while and where all is well.
    """

    def __init__(self, members: list[Member], tell: Callable[[End], None]):
        self.members, self.tell = members, tell
        self.first: End | None = None
        self._over = threading.Event()

    def wait(self) -> None:
        """Until all have ended well, or the first that did not is known."""
        self._over.wait()

    def settle(self, first: End | None) -> None:
        """All is over, and so."""
        self.first = first
        self._over.set()


def _hear_verdict(team: Team, line: Line) -> None:
    """Beside any process but the first: what process 0's parent finds."""
    message = line.receive()
    if message is None:
        team.settle(End(0, None, "is gone with its parent"))
    else:
        team.settle(None if message["first"] is None else _end(message["first"]))


def _hear(process: int, line: Line, told: queue.Queue[End]) -> None:
    """Beside process 0: what another's parent tells, until it is gone."""
    while (message := line.receive()) is not None:
        told.put(_end(message))
    told.put(End(process, None, "is gone with its parent"))


def _judge(team: Team, lines: Mapping[int, Line], told: queue.Queue[End]) -> None:
    """Beside process 0: wait for the ends of all, find the cause where one is not well, tell."""
    ends: dict[int, End] = {}
    limit: float | None = None  # of the time in which all have to have stopped
    while len(ends) < len(team.members) and all(end.fine for end in ends.values()):
        try:
            wait = None if limit is None else max(limit - time.monotonic(), 0)
            end = told.get(timeout=wait)
        except queue.Empty:
            late = min(set(range(len(team.members))) - ends.keys())
            ends[late] = End(late, None, f"did not stop within {STOP_SECONDS:.0f} s")
            continue
        ends.setdefault(end.process, end)
        if end.code == STOPPED and limit is None:
            limit = time.monotonic() + STOP_SECONDS
    first = None
    if not all(end.fine for end in ends.values()):
        _hear_more(ends, len(team.members), told)
        first = cause(ends)
    for line in lines.values():
        line.send({"first": None if first is None else asdict(first)})
    team.settle(first)


def _hear_more(ends: dict[int, End], members: int, told: queue.Queue[End]) -> None:
    """Wait a moment for what may have been first and comes later."""
    begun = time.monotonic()
    while len(ends) < members:
        known = min(end.rank for end in ends.values() if not end.fine)
        limit = begun + (SETTLE if known < 3 else SETTLE_CONSEQUENCE)
        try:
            end = told.get(timeout=max(limit - time.monotonic(), 0.01))
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
    if cluster.process == 0:
        members, lines = call_roll(cluster, seconds)
        told: queue.Queue[End] = queue.Queue()
        team = Team(members, told.put)
        for process, line in lines.items():
            _meanwhile(_hear, process, line, told)
        _meanwhile(_judge, team, lines, told)
    else:
        members, line = answer_roll(cluster, seconds)
        lines = {0: line}
        team = Team(members, lambda end: line.send(asdict(end)))
        _meanwhile(_hear_verdict, team, line)
    try:
        yield team
    finally:
        for line in lines.values():
            line.close()


def _meanwhile(do: Callable[..., None], *given: Any) -> None:
    threading.Thread(target=do, args=given, daemon=True).start()
