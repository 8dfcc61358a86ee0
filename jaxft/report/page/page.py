"""One self-contained HTML page from run folders: it works offline, and in light and in dark."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import jaxft.numbers as numbers
from jaxft.errors import UserError
from jaxft.report.page.binary import binary_figures
from jaxft.report.page.classes import number_figures
from jaxft.report.page.embeddings import embedding_figures
from jaxft.report.page.figures import figures
from jaxft.report.page.layers import layer_figures
from jaxft.report.page.run import Run, read_run
from jaxft.report.page.several_runs import FEW, run_colour, with_run_colors
from jaxft.report.page.views import differences, view
from jaxft.storage import files, outputs
from jaxft.storage.buckets import reached
from jaxft.visible import visible

PAGE = "report.html"
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Served:
    """Parts of a page that is served: what it shows besides, and what can be sent again.

    Attributes:
        home: address of the list of all runs.
        events: address of what is sent as the page changes.
        controls: of each run that can be stopped, its key and name.
        log: the last events as lines of text, newest last.
        whole: whether the page is sent with its scripts; else only its regions are wanted.
        stored: regions of an earlier page that have not changed and are not made again.
        regions: name -> markup, filled as the page is made.
        outlines: the same without the regions inside, which change on their own.
        figures: filled as the page is made.
    """

    home: str
    events: str
    whole: bool = True
    controls: list[tuple[str, str]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    stored: dict[str, Markup] = field(default_factory=dict)
    regions: dict[str, Markup] = field(default_factory=dict)
    outlines: dict[str, str] = field(default_factory=dict)
    figures: list[Mapping[str, Any]] = field(default_factory=list)

    def region(self, name: str, caller: Callable[[], Markup]) -> Markup:
        """Return a region of the page as an element that `live.js` can replace the content of.

        Args:
            name: its name, a plain word; the same each time that the page is made.
            caller: makes its content.
        """
        earlier = set(self.regions)
        markup = self.stored[name] if name in self.stored else caller()
        outline = str(markup)
        for inner in self.regions.keys() - earlier:
            outline = outline.replace(str(self.regions[inner]), "", 1)
        self.regions[name], self.outlines[name] = markup, outline
        return Markup('<div class="region" data-region="{}">{}</div>').format(name, markup)


@dataclass(frozen=True)
class Figures:
    """The figures of a page: over steps, layer by step, of the predictions, of the eval rows."""

    curves: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    scatters: list[dict[str, Any]]

    @property
    def all(self) -> list[dict[str, Any]]:
        """One after the other."""
        return [*self.curves, *self.layers, *self.thresholds, *self.scatters]


def write_page(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page that shows the runs, each by itself and all in the same figures.

    Args:
        runs: run folders.
        out: the file; `RUN/report.html` for one run, `report.html` beside the first of several.

    Returns:
        The file that was written.

    Raises:
        UserError: a folder is not a run, or is named twice; what is to be replaced is no page
            of ours.
    """
    read = read_runs(runs)
    first = files.place(runs[0])
    path = out or (first if len(runs) == 1 else first.parent) / PAGE
    # A page in its own run's folder is jaxft's, also one of a version that left no mark.
    own = files.resolved(path) == files.resolved(first) / PAGE
    mark = b"" if own else outputs.HTML_MARK
    with reached(path):
        outputs.check_output(path, mark, "--out")  # before the figures are made
        outputs.write_output(path, render(read), mark, "--out")
    return path


def read_runs(runs: Sequence[Path]) -> list[Run]:
    """Read run folders, named so that they can be told apart.

    Raises:
        UserError: there is none, a folder is not a run, or is named twice.
    """
    if not runs:
        raise UserError("There is no run to report on.", "Name at least one run folder.")
    resolved = [files.resolved(run) for run in runs]
    for path, times in Counter(resolved).items():
        if times > 1:
            raise UserError(f"The run {path} is named {times} times.", "Name it once.")
    unique = len({path.name for path in resolved}) == len(resolved)
    return [
        read_run(files.place(run), path.name if unique else str(run))
        for run, path in zip(runs, resolved, strict=True)
    ]


def all_figures(runs: Sequence[Run], earlier: Figures | None = None) -> Figures:
    """Every figure of these runs.

    Args:
        runs: the runs.
        earlier: their figures when they had fewer events, and the same predictions.
    """
    alone = len(runs) == 1
    return Figures(
        curves=figures(runs),
        layers=layer_figures(runs[0]) if alone else [],
        thresholds=earlier.thresholds
        if earlier
        else [*binary_figures(runs), *number_figures(runs)],
        scatters=earlier.scatters if earlier else embedding_figures(runs[0]) if alone else [],
    )


def render(runs: Sequence[Run]) -> str:
    """The page of these runs."""
    drawn, shown = all_figures(runs), [view(run, index) for index, run in enumerate(runs)]
    figures = with_run_colors(drawn.all, len(runs))
    return fill("page", ("drawing", "page"), figures, **page_content(runs, drawn, shown))


def page_content(
    runs: Sequence[Run], drawn: Figures, shown: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the page's template shows.

    Args:
        runs: as they were read.
        drawn: their figures.
        shown: what `view` gives for each of them.
    """
    return {
        "heat": drawn.layers,
        "curves": drawn.thresholds,
        "scatters": drawn.scatters,
        "places": [*zip(drawn.curves, spans(len(drawn.curves)), strict=True)],
        "colours": [run_colour(index, len(runs)) for index in range(len(runs))],
        "few": len(runs) <= FEW,
        "runs": shown,
        "differences": differences([run.config for run in runs]),
    }


def fill(
    template: str,
    own: Sequence[str],
    drawn: Sequence[Mapping[str, Any]],
    served: Served | None = None,
    plots: bool = True,
    **content: Any,
) -> str:
    """A page of `TEMPLATE.html` with scripts of ours.

    Every text of a run goes through the template's escaping. Besides, the page's own content
    security policy lets nothing run but the scripts written into it, and nothing load.

    Args:
        template: its name in `assets/`.
        own: names of the scripts there, in order.
        drawn: the figures, as plain data.
        served: by a server that goes on to send what changes; None for a file.
        plots: whether it has figures, now or later.
        content: what else the template shows.
    """
    if served is not None:
        served.figures.extend(drawn)
    whole = served is None or served.whole
    scripts, hashes = _scripts(tuple(own), plots) if whole else ([], [])
    return (
        _environment()
        .get_template(f"{template}.html")
        .render(
            style=Markup((ASSETS / "page.css").read_text(encoding="utf-8")),
            scripts=scripts,
            hashes=hashes,
            figures=_as_json(drawn if whole else []),
            version=importlib.metadata.version("jaxft"),
            served=served,
            region=served.region if served else _as_it_is,
            **content,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = ("score", "rate", "count", "size", "share", "span")
    environment.filters.update({name: getattr(numbers, name) for name in formats})
    return environment


@functools.cache
def _scripts(own: tuple[str, ...], plots: bool) -> tuple[list[Markup], list[str]]:
    """Return scripts of ours, before them Plotly where `plots`, and the hash of each."""
    texts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in own]
    scripts = [*([get_plotlyjs()] if plots else []), *texts]
    hashes = [hashlib.sha256(script.encode()).digest() for script in scripts]
    return [*map(Markup, scripts)], [base64.b64encode(digest).decode() for digest in hashes]


def _visible(value: Any) -> Any:
    """Write out control characters and those that reorder a line in a text of a run."""
    return visible(value) if type(value) is str else value  # the page's own text is `Markup`


def spans(count: int) -> list[int]:
    """Return how many of the page's twelve columns each figure takes, so that every row is full."""
    if count < 3:
        return [12 // max(count, 1)] * count
    rest = count - 2  # the first two, the loss and the primary metric, are the large ones
    last = {0: [], 1: [3, 3, 3, 3], 2: [6, 6]}[rest % 3] if rest != 1 else [12]
    return [6, 6, *[4] * (rest - len(last)), *last]


def _as_it_is(name: str, caller: Callable[[], Markup]) -> Markup:
    """A region of a page that does not change."""
    del name
    return caller()


def _as_json(content: Any) -> Markup:
    """JSON for a script element, which nothing inside can close: `<` is written as an escape."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))
