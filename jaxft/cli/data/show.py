"""`jaxft data show`: what the model reads, row by row.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import ConfigFile, Overrides, announce, print_report


def show(
    config: ConfigFile,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("-n", min=1, max=1000, help="The most rows.")] = 5,
    split: Annotated[
        Literal["train", "eval", "test"], typer.Option(help="The rows to show.")
    ] = "train",
    step: Annotated[int, typer.Option(min=1, help="The number of the batch.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            parser=folder_named,
            show_default=False,
            help="Draw the images there, as the model reads them, with boxes and labels.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what the model reads: tokens, what of them is scored, labels, boxes, images.

    The rows are those of a batch of the run, after tokenization, packing and augmentation. Tokens
    that the loss scores are in color and in brackets. No weights are read.
    """
    announce(f"rows of {config}")
    from jaxft.analysis.batch_view.story import show_batch as story

    view = story(config, overrides or (), count=count, split=split, step=step, out=out)
    print_report(view, as_json, highlight=False)
