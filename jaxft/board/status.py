"""Progress of a run or study: its state, whether its process lives, the time it still takes."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.board.folders import STUDY_FILE, Folder
from jaxft.board.tail import parse_event
from jaxft.errors import UserError
from jaxft.numbers import counted
from jaxft.report.events import METRICS
from jaxft.runs.folder import LOCK_FILE
from jaxft.runs.formats import RUN_FILE
from jaxft.storage.json_files import is_number, read_json_object
from jaxft.storage.lock_holder import Holder, lock_holder

STUDY_LOCK = "study.lock"
MOST_BYTES = 16 << 20  # of run.json, study.json
END_BYTES = 256 << 10  # of metrics.jsonl, which the last events are in
RUNNING, KILLED, FAILED = "running", "killed", "failed"


@dataclass(frozen=True)
class Status:
    """State and progress of a run or study.

    Attributes:
        state: `running`, `killed` (its process died), `failed` (it ended with an error),
            `finished`, `stopped`, or another that its file names.
        about: the content of `run.json` or `study.json`; empty where it cannot be read.
        problem: a sentence where it cannot be read.
        step, total: steps done, and all.
        left: seconds that it still takes; None where that is not known.
        scores: name and value of the training loss and of the metric that chooses the best.
        last: time of its last event, in seconds of the epoch; None where there is none.
        holder: the process that trains it.
    """

    state: str
    about: Mapping[str, Any]
    problem: str = ""
    step: int = 0
    total: int = 0
    left: float | None = None
    scores: tuple[tuple[str, float], ...] = ()
    last: float | None = None
    holder: Holder | None = None

    @property
    def can_stop(self) -> bool:
        """Return whether a process of this machine trains it and can be asked to stop."""
        return self.state == RUNNING and self.holder is not None and self.holder.alive is True


class StatusReader:
    """Reads the status of one folder; files that have not changed are not read again."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._about: Mapping[str, Any] = {}
        self._problem = ""
        self._stamps: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []

    def read(self, events: Sequence[dict[str, Any]] | None = None) -> Status:
        """Return the status now.

        Args:
            events: the last ones, oldest first; None reads them.
        """
        path, is_study = self._folder.path, self._folder.is_study
        file = path / (STUDY_FILE if is_study else RUN_FILE)
        if self._is_new(file):
            self._about, self._problem = _read_about(file)
        if events is not None:
            self._events = list(events)
        elif self._is_new(path / METRICS):
            self._events = last_events(path / METRICS)
        holder = lock_holder(path / (STUDY_LOCK if is_study else LOCK_FILE))
        train = [event for event in self._events if event["kind"] == "train"]
        step, total = _progress(self._about, train, is_study)
        state = state_of(self._about, holder)
        return Status(
            state,
            self._about,
            self._problem,
            step,
            total,
            seconds_left(train, total) if state == RUNNING and not is_study else None,
            _scores(self._about, self._events),
            next((e["time"] for e in reversed(self._events) if is_number(e.get("time"))), None),
            holder,
        )

    def _is_new(self, path: Path) -> bool:
        stamp = stamp_of(path)
        changed = self._stamps.get(path.name, ()) != stamp
        self._stamps[path.name] = stamp
        return changed


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file's content; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def state_of(about: Mapping[str, Any], holder: Holder | None) -> str:
    """Return the state of a run, whose own file says `running` until it ends in an orderly way.

    Args:
        about: the content of its `run.json` or `study.json`.
        holder: of its lock.
    """
    state = about.get("state")
    if state != RUNNING:
        return state[:40] if isinstance(state, str) and state else "unknown"
    if holder is None:  # the lock was released by a process that did not finish
        return FAILED
    return KILLED if holder.alive is False else RUNNING


def seconds_left(train: Sequence[Mapping[str, Any]], total: int) -> float | None:
    """Estimate the time to the last step, by the pace of the last training events.

    A pause, as between a killed run and its resumption, counts little in the pace of many.
    """
    timed = [event for event in train if is_number(event.get("time"))]
    if len(timed) < 2 or not total:
        return None
    steps = timed[-1]["step"] - timed[0]["step"]
    seconds = timed[-1]["time"] - timed[0]["time"]
    if steps <= 0 or seconds <= 0:
        return None
    return max(seconds / steps * (total - timed[-1]["step"]), 0.0)


def last_events(path: Path) -> list[dict[str, Any]]:
    """Return the events at the end of a `metrics.jsonl`, oldest first."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    with open(file, "rb", buffering=0) as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            return []
        start = max(status.st_size - END_BYTES, 0)
        opened.seek(start)
        lines = opened.read(END_BYTES).split(b"\n")
    whole = lines[1 if start else 0 : -1]
    return [event for line in whole if line.strip() and (event := parse_event(line))]


def ago(moment: float | None) -> str:
    """Return how long ago a moment was, in words; empty where there was none."""
    if moment is None:
        return ""
    seconds = max(time.time() - moment, 0)
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{counted(count, name)} ago"
    return f"{int(seconds) // 5 * 5} seconds ago" if seconds >= 5 else "now"


def _read_about(file: Path) -> tuple[Mapping[str, Any], str]:
    try:
        return read_json_object(file, MOST_BYTES), ""
    except UserError as error:
        return {}, error.message
    except OSError as error:
        return {}, f"{file} cannot be read: {error.strerror}."


def _progress(
    about: Mapping[str, Any], train: Sequence[Mapping[str, Any]], is_study: bool
) -> tuple[int, int]:
    step = train[-1]["step"] if train else 0
    if not is_study:
        resolved = about.get("resolved")
        total = resolved.get("total_steps") if isinstance(resolved, Mapping) else None
        return step, total if is_number(total) and isinstance(total, int) else 0
    parts = about.get("parts")
    steps = [part.get("steps") for part in parts or () if isinstance(part, Mapping)]
    whole = [count for count in steps if is_number(count) and isinstance(count, int)]
    finished = about.get("state") == "finished"
    return (sum(whole), sum(whole)) if finished else (step, sum(whole))


def _scores(
    about: Mapping[str, Any], events: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, float], ...]:
    """Return the newest training loss, and the newest value of the metric that matters."""
    metric = about.get("best_metric", about.get("metric"))
    wanted = [("train", "loss")] + ([("eval", metric)] if isinstance(metric, str) else [])
    scores = []
    for kind, name in wanted:
        values = [e[name] for e in events if e["kind"] == kind and is_number(e.get(name))]
        label = "train loss" if kind == "train" else name.replace("_", " ")
        scores += [(label, float(values[-1]))] if values else []
    return tuple(scores)
