"""`jaxft doctor`: problems of this machine that would stop a run, and where a run's time went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import print_report


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            parser=folder_named,
            help="A run that has finished: tells where its time went, and what to change first.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        str,
        typer.Option("--dir", metavar="DIR", help="The folder of runs, which may be in a bucket."),
    ] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check devices, versions, memory, disk, hub and browser; exit code 1 if a run would fail.

    With a run: the shares of its time in steps, input, compilation, evaluation and saves, the
    FLOP/s of its steps, and the first three things to change.
    """
    if run is not None:
        from jaxft.analysis.time_use import time_use_of

        print_report(time_use_of(run), as_json, highlight=False)
        return
    from jaxft.analysis.doctor import diagnose

    diagnosis = diagnose(folder)
    print_report(diagnosis, as_json)
    if not diagnosis.sound:
        raise typer.Exit(1)
