"""One self-contained HTML page from run folders: it works offline, and in light and in dark."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from jaxft import files
from jaxft.errors import UserError
from jaxft.report import numbers
from jaxft.report.page_binary import binary_figures
from jaxft.report.page_classes import number_figures
from jaxft.report.page_figures import figures
from jaxft.report.page_layers import layer_figures
from jaxft.report.page_run import Run, read_run
from jaxft.report.page_views import differences, view

ASSETS = Path(__file__).parent / "assets"


def write_page(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page that shows the runs, each by itself and all in the same figures.

    Args:
        runs: run folders.
        out: the file; `RUN/report.html` for one run, `report.html` beside the first of several.

    Returns:
        The file that was written.

    Raises:
        UserError: a folder is not a run, or is named twice.
    """
    if not runs:
        raise UserError("There is no run to report on.", "Name at least one run folder.")
    resolved = [Path(run).resolve() for run in runs]
    for path, times in Counter(resolved).items():
        if times > 1:
            raise UserError(f"The run {path} is named {times} times.", "Name it once.")
    unique = len({path.name for path in resolved}) == len(resolved)
    read = [
        read_run(run, path.name if unique else str(run))
        for run, path in zip(runs, resolved, strict=True)
    ]
    first = Path(runs[0])
    path = out or (first if len(runs) == 1 else first.parent) / "report.html"
    files.write_atomic(path, render(read))
    return path


def render(runs: Sequence[Run]) -> str:
    """The page of these runs."""
    drawn = figures(runs)
    heat = layer_figures(runs[0]) if len(runs) == 1 else []
    curves = [*binary_figures(runs), *number_figures(runs)]
    return fill(
        "page",
        [*drawn, *heat, *curves],
        heat=heat,
        curves=curves,
        places=[*zip(drawn, spans(len(drawn)), strict=True)],
        runs=[view(run, index) for index, run in enumerate(runs)],
        differences=differences([run.config for run in runs]),
    )


def fill(template: str, drawn: Sequence[Mapping[str, Any]], **content: Any) -> str:
    """A page of `TEMPLATE.html` with the script `TEMPLATE.js`.

    Every text of a run goes through the template's escaping. Besides, the page's own content
    security policy lets nothing run but the two scripts written into it, and nothing load.

    Args:
        template: name of both in `assets/`.
        drawn: the figures, as plain data.
        content: what else the template shows.
    """
    scripts = [get_plotlyjs(), (ASSETS / f"{template}.js").read_text(encoding="utf-8")]
    hashes = [hashlib.sha256(script.encode()).digest() for script in scripts]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = ("score", "rate", "count", "size", "share", "span")
    environment.filters.update({name: getattr(numbers, name) for name in formats})
    return environment.get_template(f"{template}.html").render(
        style=Markup((ASSETS / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(digest).decode() for digest in hashes],
        figures=_as_json(drawn),
        version=importlib.metadata.version("jaxft"),
        **content,
    )


def spans(count: int) -> list[int]:
    """How many of the page's twelve columns each figure takes, so that every row is full."""
    if count < 3:
        return [12 // max(count, 1)] * count
    rest = count - 2  # the first two, the loss and the primary metric, are the large ones
    last = {0: [], 1: [3, 3, 3, 3], 2: [6, 6]}[rest % 3] if rest != 1 else [12]
    return [6, 6, *[4] * (rest - len(last)), *last]


def _as_json(content: Any) -> Markup:
    """JSON for a script element, which nothing inside can close: `<` is written as an escape."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))
