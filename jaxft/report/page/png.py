"""Each figure of a report as a PNG, drawn by a headless Chromium as it draws the page."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from jaxft.errors import UserError
from jaxft.report.browser import run_page
from jaxft.report.page.page import all_figures, fill, read_runs
from jaxft.report.page.several_runs import with_run_colors
from jaxft.storage import outputs

UNSAFE = r"[^A-Za-z0-9_.-]+"  # in the name of a file
DRAWN = re.compile(r'<pre id="drawn">(.*?)</pre>', re.DOTALL)


def write_pngs(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write every figure of the runs' page into a folder, in its light colours.

    Args:
        runs: run folders.
        folder: made where it is not there; figures of an earlier report are replaced.

    Returns:
        The files, `score-loss.png` and so on.

    Raises:
        UserError: a folder is not a run, or is named twice; there is no Chromium;
            a file there has a figure's name and is not ours.
    """
    figures = with_run_colors(all_figures(read_runs(runs)).all, len(runs))
    match = DRAWN.search(run_page(fill("png", ("drawing", "png"), figures, runs=len(runs))))
    pictures = json.loads(html.unescape(match[1])) if match else {}
    missing = [figure["id"] for figure in figures if figure["id"] not in pictures]
    if missing:
        raise UserError(
            f"Chromium did not render the figure {missing[0]}.",
            "Look at the page: jaxft report RUN.",
        )
    paths = {folder / f"{re.sub(UNSAFE, '-', name)}.png": pictures[name] for name in pictures}
    for path in paths:  # all of them before the first is written
        outputs.check_output(path, outputs.PNG_MARK, "--png")
    for path, picture in paths.items():
        content = outputs.marked_png(base64.b64decode(picture.split(",", 1)[1]))
        outputs.write_output(path, content, outputs.PNG_MARK, "--png")
    return list(paths)
