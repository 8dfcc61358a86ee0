"""Each figure of a report as a PNG, drawn by a headless Chromium as it draws the page."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from jaxft import files
from jaxft.errors import UserError
from jaxft.report.browser import run_page
from jaxft.report.page import all_figures, fill, read_runs
from jaxft.report.page_many import told_apart

DRAWN = re.compile(r'<pre id="drawn">(.*?)</pre>', re.DOTALL)


def write_pngs(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write every figure of the runs' page into a folder, in its light colours.

    Args:
        runs: run folders.
        folder: made where it is not there; figures that are there already are replaced.

    Returns:
        The files, `score-loss.png` and so on.

    Raises:
        UserError: a folder is not a run, or is named twice; there is no Chromium.
    """
    figures = told_apart(all_figures(read_runs(runs)).all, len(runs))
    found = DRAWN.search(run_page(fill("png", ("drawing", "png"), figures, runs=len(runs))))
    pictures = json.loads(html.unescape(found[1])) if found else {}
    missing = [figure["id"] for figure in figures if figure["id"] not in pictures]
    if missing:
        raise UserError(f"Chromium drew no {missing[0]}.", "Look at the page: jaxft report RUN.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.png")
        files.write_atomic(paths[-1], base64.b64decode(picture.split(",", 1)[1]))
    return paths
