"""`metrics.jsonl` read as it grows, in bounded memory however long the run is."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.errors import UserError
from jaxft.report.events import METRICS
from jaxft.storage.json_files import is_number, parse_json

CHUNK = 1 << 20  # bytes that are read at a time
MOST_BYTES = 16 << 20  # that one call reads: a long file is shown while it is being read
MOST_LINE = 1 << 20  # bytes; a longer line is passed over
MOST_TEXT = 2_000  # characters of a text
MOST_MEANS = 500  # training events of one curve; neighbours beyond that are averaged
MOST_PICKED = 240  # other events of one kind; beyond that every second one is left out
MOST_GROUPS = 6_000  # events of all curves together
RECENT = 200  # lines of the log
POSITION = ("step", "time", "epoch", "kind", "split", "member")  # has no mean


class Means:
    """A curve of at most `most` events, each the mean of equally many neighbours.

    Args:
        most: events, at least 2.
    """

    def __init__(self, most: int):
        self._most, self._stride = most, 1
        self._groups: list[tuple[int, dict[str, Any]]] = []
        self._last: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event."""
        self._last = event
        if self._groups and self._groups[-1][0] < self._stride:
            self._groups[-1] = _joined(self._groups[-1], (1, event))
        else:
            self._groups.append((1, event))
        while len(self._groups) > self._most:
            pairs = zip(self._groups[::2], [*self._groups[1::2], None], strict=False)
            self._groups = [one if two is None else _joined(one, two) for one, two in pairs]
            self._stride *= 2

    def events(self) -> list[dict[str, Any]]:
        """Return the means, and the newest event as it is."""
        means = [event for _, event in self._groups]
        newest = [self._last] if self._last is not None and self._groups[-1][0] > 1 else []
        return means + newest


class Picked:
    """At most `most` of many events, evenly spaced, and the newest."""

    def __init__(self, most: int):
        self._most, self._stride, self._count = most, 1, 0
        self._events: list[dict[str, Any]] = []
        self._last: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Add the next event."""
        if self._count % self._stride == 0:
            self._events.append(event)
            self._last = None
        else:
            self._last = event
        self._count += 1
        if len(self._events) > self._most:
            self._events = self._events[::2]
            self._stride *= 2

    def events(self) -> list[dict[str, Any]]:
        """Return those that were picked, and the newest."""
        return self._events + ([] if self._last is None else [self._last])


class Tail:
    """The events of a run or study that goes on.

    Args:
        folder: its folder.

    Attributes:
        recent: the newest events as they were written.
        unread: lines that were no events.
        version: a number that grows with each change.
    """

    def __init__(self, folder: Path):
        self._path = folder / METRICS
        self._file: tuple[int, int] | None = None  # device and inode
        self.version = 0
        self._forget()

    def _forget(self) -> None:
        self._offset, self._rest, self._skips = 0, b"", False
        self._curves: dict[tuple[Any, ...], Means | Picked] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.unread = 0
        self.version += 1

    def advance(self, most_bytes: int = MOST_BYTES) -> bool:
        """Read what was written since the last call; return whether there is more to read.

        A file that was replaced, as by a resumed run, or cut is read again from its start.
        """
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            if self._file is not None:
                self._file = None
                self._forget()
            return False
        with open(file, "rb", buffering=0) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                return False
            same = self._file == (status.st_dev, status.st_ino)
            if not same or status.st_size < self._offset:
                self._forget()
            self._file = (status.st_dev, status.st_ino)
            stop = min(status.st_size, self._offset + most_bytes)
            if self._offset < stop:
                self.version += 1
            opened.seek(self._offset)
            while self._offset < stop and (block := opened.read(min(CHUNK, stop - self._offset))):
                self._offset += len(block)
                self._feed(block)
            return self._offset < status.st_size

    def events(self) -> list[dict[str, Any]]:
        """Return the events, thinned, in the order of their steps."""
        events = [event for curve in self._curves.values() for event in curve.events()]
        return sorted(events, key=lambda event: event["step"])

    def _feed(self, block: bytes) -> None:
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            if self._skips:  # the end of a line that was too long
                self._skips = False
            elif line.strip():
                self._add(line)
        if len(self._rest) > MOST_LINE:
            self.unread += not self._skips
            self._rest, self._skips = b"", True

    def _add(self, line: bytes) -> None:
        event = parse_event(line)
        if event is None:
            self.unread += 1
            return
        self.recent.append(event)
        key = (event["kind"], event.get("split"), event.get("member"))
        if key not in self._curves:
            share = MOST_GROUPS // (len(self._curves) + 1)
            means = event["kind"] == "train"
            most = MOST_MEANS if means else MOST_PICKED
            if len(self._curves) > MOST_GROUPS:
                return
            self._curves[key] = (Means if means else Picked)(max(min(most, share), 8))
        self._curves[key].add(event)


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Return a line of `metrics.jsonl` with what can be shown of it; None where it is no event."""
    try:
        event = parse_json(line, METRICS)
    except UserError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    step = event.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or abs(step) > 2**53:
        return None
    plain = {name: _plain(value) for name, value in event.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a number, a short text or a mapping to numbers; None of anything else."""
    if isinstance(value, str):
        return value[:MOST_TEXT]
    if isinstance(value, Mapping):
        return {name: inner for name, inner in value.items() if is_number(inner)}
    return value if is_number(value) else None


def _joined(
    one: tuple[int, dict[str, Any]], two: tuple[int, dict[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """Return the mean of two means, at the position of the first."""
    (count, left), (more, right) = one, two
    mean = dict(left)
    for name, value in left.items():
        other = right.get(name)
        if name not in POSITION and is_number(value) and is_number(other):
            mean[name] = (count * value + more * other) / (count + more)
    return count + more, mean
