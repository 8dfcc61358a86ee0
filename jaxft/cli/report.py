"""`jaxft report`: runs as a web page, as JSON or as pictures.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import echo
from jaxft.errors import UserError


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", parser=folder_named, help="The run folders.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=folder_named,
            help="The page to write; report.html in the run, or beside the first of several.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print scores and figures as JSON instead.")
    ] = False,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=folder_named,
            help="Write each figure as a PNG into this folder instead (needs Chromium).",
        ),
    ] = None,
) -> None:
    """Write a self-contained web page about one or more runs, and print its path."""
    if sum((out is not None, as_json, png is not None)) > 1:
        raise UserError("--out, --json and --png are three kinds of report.", "Use one of them.")
    if as_json:
        from jaxft.report.page.json_report import report_json

        echo(report_json(runs))
    elif png is not None:
        from jaxft.report.page.png import write_pngs

        for path in write_pngs(runs, png):
            echo(path)
    else:
        from jaxft.report.page.page import write_page

        echo(write_page(runs, out))
