"""`jaxft push`: a run's export on the Hugging Face hub.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxft.cli.parts.checkpoints import CheckpointOfRun, checkpoint_named
from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import announce, echo


def push(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", parser=folder_named, help="The run folder.")
    ],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the hub.")],
    checkpoint: CheckpointOfRun = "best",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; private by default.")
    ] = False,
) -> None:
    """Export a run, upload it with its model card to the Hugging Face hub; print the address."""
    which = checkpoint_named(checkpoint)
    announce(f"push of {run}")
    from jaxft.export.push import push as story

    echo(story(run, repo, which, public))
