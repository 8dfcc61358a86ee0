"""`jaxft data`: look at rows, and write them down.

A story is imported when it is asked for, as in `cli.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxft.cli.terminal import print_report

app = typer.Typer(
    help="Look at data before training on it, and write it as a TFDS data set.",
    no_args_is_help=True,
)


@app.command()
def describe(
    what: Annotated[
        str, typer.Argument(metavar="CONFIG|SOURCE", help="A run, or rows such as csv:FILE.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Config keys to set.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    label: Annotated[str | None, typer.Option(help="The column that holds the class.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Whether this checkpoint suits the texts."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Texts to compare the features with."),
    ] = None,
    sample: Annotated[int, typer.Option(min=20, help="The most texts to hold against it.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show columns, labels, lengths, examples, what comes twice, and what a checkpoint sees."""
    from jaxft.analysis.describe_data import describe_data as story

    description = story(
        what,
        overrides or (),
        text=text,
        label=label,
        against=against,
        reference=reference,
        sample=sample,
    )
    print_report(description, as_json)


@app.command()
def build(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[SPLIT=]SOURCE", help="Rows, such as test=csv:FILE; or tfds:NAME to prepare."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder of the data set to write.")] = None,
) -> None:
    """Write sources as a TFDS data set, or prepare an official one; prints what reads it."""
    from jaxft.analysis.build_data import build_data as story

    typer.echo(story(what, out))
