"""The board's pages: the list of runs, the report's page of one or several, a study's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

import jaxft.numbers as numbers
from jaxft.board.folders import Folder, find_folders
from jaxft.board.live_run import LiveRun
from jaxft.board.live_study import LiveStudy
from jaxft.board.status import KILLED, RUNNING, Status, StatusReader, ago
from jaxft.errors import UserError
from jaxft.report.page.page import Figures, Served, all_figures, fill, page_content
from jaxft.report.page.several_runs import with_run_colors
from jaxft.report.page.study import render_study

MOST_COMPARED = 12  # runs on one page
MOST_LINES = 100  # of the log
FIRST = (RUNNING, KILLED)  # states that are listed before the others


class Page(ABC):
    """A page of the board; it can be made again and again.

    Args:
        token: part of each address; empty where none is asked for.
    """

    def __init__(self, token: str):
        self.token = token

    @abstractmethod
    def render(self, served: Served) -> str:
        """Return the page as it is now; `served` then has its regions and figures."""

    @abstractmethod
    def states(self) -> Mapping[str, str]:
        """Return the state of each run on it, by name, as of the last `render`."""

    @abstractmethod
    def mark(self) -> Any:
        """Look at the files; return a value that differs from the last where they changed."""

    def address(self, path: str, query: Iterable[tuple[str, str]] = ()) -> str:
        """Return an address of this server."""
        words = [*query, *([("token", self.token)] if self.token else [])]
        return f"{path}?{urlencode(words)}" if words else path


class ListPage(Page):
    """The runs and studies below a folder.

    Args:
        top: the folder.
        token: as of every page.
    """

    def __init__(self, top: Path, token: str):
        super().__init__(token)
        self._top, self._readers = top, dict[str, StatusReader]()
        self._rows: list[tuple[Folder, Status]] = []

    def mark(self) -> Any:
        """Read the status of every run; the list of running ones says how long ago it was."""
        folders = find_folders(self._top)
        readers = {one.key: self._readers.get(one.key) or StatusReader(one) for one in folders}
        self._readers = readers
        self._rows = [(one, readers[one.key].read()) for one in folders]
        self._rows.sort(key=lambda row: _order(row[1]))
        return [(one.key, _facts(status)) for one, status in self._rows], [
            status for _, status in self._rows
        ]

    def render(self, served: Served) -> str:
        """Return the list."""
        rows = [self._row(one, status) for one, status in self._rows]
        states = [status.state for _, status in self._rows]
        counted = {state: states.count(state) for state in dict.fromkeys([RUNNING, *states])}
        return fill(
            "board",
            ("board", "live"),
            [],
            served,
            plots=False,
            folder=self._top.resolve().name or str(self._top),
            token=self.token,
            summary=", ".join(f"{count} {state}" for state, count in counted.items()),
            runs=[row for row in rows if not row["is_study"]],
            studies=[row for row in rows if row["is_study"]],
        )

    def states(self) -> Mapping[str, str]:
        """Return the state of every run."""
        return {one.name: status.state for one, status in self._rows}

    def _row(self, one: Folder, status: Status) -> dict[str, Any]:
        kind = "study" if one.is_study else "run"
        return {
            "key": one.key,
            "name": one.name,
            "is_study": one.is_study,
            "address": self.address("/study" if one.is_study else "/runs", [(kind, one.key)]),
            "state": status.state,
            "done": min(status.step / status.total, 1.0) if status.total else 0.0,
            "total": status.total,
            "facts": _facts(status),
            "problem": status.problem,
            "can_stop": status.can_stop and not one.is_study,
        }


class RunsPage(Page):
    """The report's page of runs that go on.

    Args:
        folders: of the runs.
        token: as of every page.
    """

    def __init__(self, folders: Sequence[Folder], token: str):
        super().__init__(token)
        if len(folders) > MOST_COMPARED:
            raise UserError(f"A page shows {MOST_COMPARED} runs at most.", "Tick fewer.")
        self._runs = [LiveRun(folder) for folder in folders]
        self._stamps: list[Any] = []  # of the files that these were made from
        self._figures: Figures | None = None
        self._details: dict[str, Markup] = {}

    def mark(self) -> Any:
        """Read what was written since."""
        return [run.refresh() for run in self._runs]

    def render(self, served: Served) -> str:
        """Return the page."""
        runs, stamps = [one.run() for one in self._runs], [one.stamp for one in self._runs]
        if stamps != self._stamps:
            self._figures, self._details = None, {}
        drawn = all_figures(runs, self._figures)
        shown = [one.view(runs[index], index) for index, one in enumerate(self._runs)]
        stoppable = [one.folder for one in self._runs if one.status.can_stop]
        served.log.extend(self._log())
        served.controls.extend((folder.key, folder.name) for folder in stoppable)
        served.stored.update(self._details)
        figures, content = with_run_colors(drawn.all, len(runs)), page_content(runs, drawn, shown)
        page = fill("page", ("drawing", "page", "live"), figures, served, **content)
        details = {f"details-{index}": index for index in range(len(runs))}
        self._details = {name: served.regions[name] for name in details if name in served.regions}
        self._stamps, self._figures = stamps, drawn
        return page

    def states(self) -> Mapping[str, str]:
        """Return the state of each run."""
        return {one.folder.name: one.status.state for one in self._runs}

    def _log(self) -> list[str]:
        several = len(self._runs) > 1
        lines = [
            (moment, f"{one.folder.name}  {text}" if several else text)
            for one in self._runs
            for moment, text in one.log()
        ]
        return [text for _, text in sorted(lines, key=lambda line: line[0])[-MOST_LINES:]]


class StudyPage(Page):
    """The page of a study that goes on.

    Args:
        folder: of the study.
        token: as of every page.
    """

    def __init__(self, folder: Folder, token: str):
        super().__init__(token)
        self._study = LiveStudy(folder)

    def mark(self) -> Any:
        """Read what was written since."""
        return self._study.refresh()

    def render(self, served: Served) -> str:
        """Return the page."""
        study = self._study
        about, parts, events = study.about(), study.parts, study.events()
        try:
            return render_study(study.folder.path, about, parts, events, ("live",), served)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"{study.folder.path} does not have the format of a study that jaxft writes."
            ) from None

    def states(self) -> Mapping[str, str]:
        """Return the state of the study."""
        return {self._study.folder.name: self._study.status.state}


def _order(status: Status) -> tuple[int, str]:
    """Sort by state, the newest start first."""
    rank = FIRST.index(status.state) if status.state in FIRST else len(FIRST)
    started = str(status.about.get("started", ""))
    return rank, "".join(chr(0x10FFFF - ord(letter)) for letter in started[:32])


def _facts(status: Status) -> tuple[str, ...]:
    facts = []
    if status.total:
        facts.append(f"step {status.step:,} of {status.total:,}")
    if status.left is not None:
        facts.append(f"{numbers.span(status.left)} left")
    facts += [f"{name} {numbers.score(value)}" for name, value in status.scores]
    if status.last is not None:
        facts.append(f"last event {ago(status.last)}")
    if status.state == RUNNING and status.holder is not None and not status.holder.here:
        facts.append(f"on {status.holder.host}")
    return tuple(facts)


def change(served: Served, sent: dict[str, int]) -> dict[str, Any] | None:
    """Return what a reader of an earlier page has to be sent; None for nothing.

    Args:
        served: of the page as it is now.
        sent: name of a region or figure -> hash of what the reader has; it is brought up to date.
    """
    regions, figures = {}, []
    for name, outline in served.outlines.items():
        if _is_new(f"region {name}", outline, sent):
            regions[name] = str(served.regions[name])
    for figure in served.figures:
        if _is_new(f"figure {figure['id']}", json.dumps(figure, allow_nan=False), sent):
            figures.append(figure)
    if not regions and not figures:
        return None
    names = [figure["id"] for figure in served.figures]
    return {"regions": regions, "figures": figures, "names": names}


def _is_new(name: str, content: str, sent: dict[str, int]) -> bool:
    mark = hash(content)
    changed = sent.get(name) != mark
    sent[name] = mark
    return changed
