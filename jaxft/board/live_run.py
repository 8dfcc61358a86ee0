"""A run that goes on, as the report's page shows it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import jaxft.numbers as numbers
from jaxft.board.folders import Folder
from jaxft.board.status import RUNNING, Status, StatusReader
from jaxft.board.tail import Tail
from jaxft.errors import UserError
from jaxft.report.events import METRICS
from jaxft.report.page.predictions.images import FOLDER as SAMPLES
from jaxft.report.page.run import Run, read_run
from jaxft.report.page.views import changing_view, view
from jaxft.storage.json_files import is_number
from jaxft.visible import visible

LINE_VALUES = 6  # numbers in a line of the log


class LiveRun:
    """A run, read again as its files change.

    Args:
        folder: of the run.

    Attributes:
        status: what it was doing when it was last looked at.
        stamp: changes with any of its files but `metrics.jsonl`.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self.stamp: Any = None
        self.status = Status("unknown", {})
        self._reader, self._tail = StatusReader(folder), Tail(folder.path)
        self._read = Run(folder.name, folder.path, {})
        self._view: dict[str, Any] | None = None

    def refresh(self) -> Any:
        """Read what was written since; return a value that differs from the last if anything was.

        A long `metrics.jsonl` is read in several calls.
        """
        self._tail.advance()
        self.status = self._reader.read(list(self._tail.recent))
        stamp = _stamp(self.folder.path)
        if stamp != self.stamp:
            self.stamp, self._view = stamp, None
            self._read = _read(self.folder)
        return self._tail.version, stamp, self.status.state, self.status.can_stop

    def run(self) -> Run:
        """Return the run with its events so far, of a long one thinned."""
        about = {**self._read.about, "state": self.status.state}
        problems = self._read.problems
        if self.status.state != "finished":  # what a run writes at its end is not missing yet
            problems = [problem for problem in problems if " has no " not in problem]
        if self._tail.unread:
            lines = f"{self._tail.unread:,} lines of {METRICS} are no events and are left out."
            problems = [*problems, lines]
        return replace(self._read, events=self._tail.events(), about=about, problems=problems)

    def view(self, run: Run, index: int) -> dict[str, Any]:
        """Return what the page's template shows of it.

        Args:
            run: as `run` returned it.
            index: its number on the page.
        """
        if self._view is None:
            self._view = view(run, index)
        shown = {**self._view, **changing_view(run), "index": index, "problems": run.problems}
        shown["tiles"] = [*self._progress(), *shown["tiles"]]
        return shown

    def log(self) -> Iterator[tuple[float, str]]:
        """Yield the last events as time and text."""
        for event in self._tail.recent:
            text = event_text(event)
            if text:
                moment = event.get("time")
                yield (moment if is_number(moment) else 0.0), text

    def _progress(self) -> Iterator[tuple[str, str]]:
        status = self.status
        if status.state == RUNNING and status.total:
            yield "done", numbers.share(min(status.step / status.total, 1.0))
        if status.left is not None:
            yield "time left", numbers.span(status.left)


def event_text(event: Mapping[str, Any]) -> str:
    """Return an event as a line of the log; empty where it is of many layers."""
    if event["kind"] not in ("train", "eval", "note"):
        return ""
    moment = event.get("time")
    clock = ""
    if is_number(moment) and 0 <= moment < 2**36:
        clock = datetime.fromtimestamp(moment).strftime("%H:%M:%S") + "  "
    head = f"{clock}step {event['step']:,}"
    if event["kind"] == "note":
        return visible(f"{head}  {event.get('text', '')}")
    values = [
        f"{name} {numbers.score(value)}"
        for name, value in event.items()
        if name not in ("step", "time", "epoch") and is_number(value) and "per_second" not in name
    ]
    kind = str(event.get("split", "eval")) if event["kind"] == "eval" else ""
    return visible("  ".join([head, *([kind] if kind else []), *values[:LINE_VALUES]]))


def _read(folder: Folder) -> Run:
    try:
        return read_run(folder.path, folder.name, events=[])
    except UserError as error:
        return Run(folder.name, folder.path, {}, problems=[error.message])


def _stamp(path: Path) -> Any:
    """Return what changes with the files of a run; locks and its events are not among them."""
    try:
        with os.scandir(path) as entries:
            looked_at = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return None
    return sorted(
        (name, status.st_mtime_ns, status.st_size)
        for name, status in looked_at
        if name == SAMPLES or (stat.S_ISREG(status.st_mode) and _is_shown(name))
    )


def _is_shown(name: str) -> bool:
    """Return whether a file's content is on the page, and is read whole."""
    return name != METRICS and name.endswith((".json", ".jsonl", ".yaml"))
