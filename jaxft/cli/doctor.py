"""`jaxft doctor`: problems of this machine that would stop a run."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxft.cli.parts.terminal import print_report


def doctor(
    folder: Annotated[
        str,
        typer.Option("--dir", metavar="DIR", help="The folder of runs, which may be in a bucket."),
    ] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check devices, versions, memory, disk, hub and browser; exit code 1 if a run would fail."""
    from jaxft.analysis.doctor import diagnose

    diagnosis = diagnose(folder)
    print_report(diagnosis, as_json)
    if not diagnosis.sound:
        raise typer.Exit(1)
