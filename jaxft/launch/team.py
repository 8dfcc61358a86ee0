"""The common end of a run's processes: each parent reports, process 0's decides, all learn it."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxft.launch.cluster import Cluster
from jaxft.launch.roll import ALIVE, Line, Member, answer_roll, call_roll

STOPPED = 128 + signal.SIGTERM
# The exit code of a process that could not compute with the others: perhaps one is gone.
COMPUTATION_FAILED = 76
# Seconds in which the cause of a failure may still arrive after its first consequence.
SETTLE, SETTLE_CONSEQUENCE = 1.0, 6.0
# Each parent sends a sign of life this often; one that is silent for so long has stopped answering.
ALIVE_SECONDS, SILENT_SECONDS = 5.0, 30.0
STOP_SECONDS = 300.0  # from the first that has saved and stopped to the last


@dataclass(frozen=True)
class End:
    """The end of a process.

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
        """Return whether it completed, or was asked to stop and did."""
        return self.code in (0, STOPPED)

    @property
    def rank(self) -> int:
        """Return a rank that is the lower the more likely this end caused the others."""
        if self.blames is not None:
            return 4
        if self.code is None:
            return 3
        return 0 if self.code < 0 else 1 if self.code == 2 else 2


def _end(message: dict[str, Any]) -> End:
    blames = message["blames"]
    return End(**{**message, "blames": None if blames is None else tuple(blames)})


class Team:
    """All processes of the run, as one parent knows them.

    Args:
        members: every process, in order.
        tell: reports how this host's process ended.

    Attributes:
        first: the end that ended the run; None as long as all is well.
    """

    def __init__(self, members: list[Member], tell: Callable[[End], None]):
        self.members, self.tell = members, tell
        self.first: End | None = None
        self._over = threading.Event()

    def wait(self) -> None:
        """Wait until all have ended well, or the first failure is known."""
        self._over.wait()

    def settle(self, first: End | None) -> None:
        """Record the outcome, and release those who wait for it."""
        self.first = first
        self._over.set()


def _hear_verdict(team: Team, line: Line) -> None:
    """Receive the outcome from process 0's parent."""
    try:
        message = line.next_report(SILENT_SECONDS)
    except TimeoutError:
        team.settle(End(0, None, "stopped answering"))
        return
    if message is None:
        team.settle(End(0, None, "is gone with its parent"))
    else:
        team.settle(None if message["first"] is None else _end(message["first"]))


def _hear(process: int, line: Line, ends: queue.Queue[End]) -> None:
    """Receive the reports of another process's parent until it is gone."""
    try:
        while (message := line.next_report(SILENT_SECONDS)) is not None:
            ends.put(_end(message))
    except TimeoutError:
        ends.put(End(process, None, "stopped answering"))
    else:
        ends.put(End(process, None, "is gone with its parent"))


def _stay_alive(lines: Sequence[Line], over: threading.Event) -> None:
    """Send a sign of life on every connection until the run is over."""
    while not over.wait(ALIVE_SECONDS):
        for line in lines:
            line.send(ALIVE)


def _judge(team: Team, lines: Mapping[int, Line], reported: queue.Queue[End]) -> None:
    """Wait for all ends, find the cause if one of them failed, and report it to all."""
    ends: dict[int, End] = {}
    limit: float | None = None  # of the time in which all have to have stopped
    while len(ends) < len(team.members) and all(end.fine for end in ends.values()):
        try:
            wait = None if limit is None else max(limit - time.monotonic(), 0)
            end = reported.get(timeout=wait)
        except queue.Empty:
            late = min(set(range(len(team.members))) - ends.keys())
            ends[late] = End(late, None, f"did not stop within {STOP_SECONDS:.0f} s")
            continue
        ends.setdefault(end.process, end)
        if end.code == STOPPED and limit is None:
            limit = time.monotonic() + STOP_SECONDS
    first = None
    if not all(end.fine for end in ends.values()):
        _hear_more(ends, len(team.members), reported)
        first = cause(ends)
    for line in lines.values():
        line.send({"first": None if first is None else asdict(first)})
    team.settle(first)


def _hear_more(ends: dict[int, End], members: int, reported: queue.Queue[End]) -> None:
    """Wait a moment for an earlier failure whose report arrives later."""
    begun = time.monotonic()
    while len(ends) < members:
        known = min(end.rank for end in ends.values() if not end.fine)
        limit = begun + (SETTLE if known < 3 else SETTLE_CONSEQUENCE)
        try:
            end = reported.get(timeout=max(limit - time.monotonic(), 0.01))
        except queue.Empty:
            return
        ends.setdefault(end.process, end)


def cause(ends: dict[int, End]) -> End:
    """Return the end that caused the others."""
    failed = [end for end in ends.values() if not end.fine]
    earliest = min(failed, key=lambda end: (end.rank, end.process))
    if earliest.blames:
        lost = earliest.blames[0]
        return replace(earliest, process=lost, code=None, why="stopped answering", blames=())
    return earliest


@contextlib.contextmanager
def join(cluster: Cluster, seconds: float) -> Iterator[Team]:
    """Yield the team of a run once all of its processes have started.

    Args:
        cluster: the run's processes.
        seconds: the time to wait for them.

    Raises:
        UserError: not all started.
    """
    if cluster.process == 0:
        members, lines = call_roll(cluster, seconds)
        reported: queue.Queue[End] = queue.Queue()
        team = Team(members, reported.put)
        for process, line in lines.items():
            _meanwhile(_hear, process, line, reported)
        _meanwhile(_judge, team, lines, reported)
    else:
        members, line = answer_roll(cluster, seconds)
        lines = {0: line}
        team = Team(members, lambda end: line.send(asdict(end)))
        _meanwhile(_hear_verdict, team, line)
    over = threading.Event()
    _meanwhile(_stay_alive, [*lines.values()], over)
    try:
        yield team
    finally:
        over.set()
        for line in lines.values():
            line.close()


def _meanwhile(do: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=do, args=arguments, daemon=True).start()
