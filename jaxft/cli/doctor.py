"""`jaxft doctor`: what would go wrong here."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxft.cli.terminal import print_report


def doctor(
    folder: Annotated[
        str, typer.Option("--dir", metavar="DIR", help="Where runs go; may be in a bucket.")
    ] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Look at devices, versions, memory, disk, hub and browser; exit code 1 if a run would fail."""
    from jaxft.analysis.doctor import diagnose

    diagnosis = diagnose(folder)
    print_report(diagnosis, as_json)
    if not diagnosis.sound:
        raise typer.Exit(1)
