"""The option that names a checkpoint of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxft.errors import UserError

CheckpointOfRun = Annotated[
    str,
    typer.Option("--checkpoint", metavar="best|last|STEP", help="The checkpoint of the run."),
]


def checkpoint_named(written: str) -> int | str:
    """Return `best`, `last` or the number of a step.

    Raises:
        UserError: it is none of these.
    """
    if written.isdecimal():
        return int(written)
    if written not in ("best", "last"):
        raise UserError(
            f"--checkpoint must be best, last or the number of a step, not '{written}'."
        )
    return written
