"""`jaxft data`: describe rows, show what a model reads of them, and write them as a TFDS data set.

Each story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxft.cli.data.show import show
from jaxft.cli.parts.terminal import announce, echo, print_report

app = typer.Typer(
    help="Look at data before training on it, or write it as a TFDS data set.",
    no_args_is_help=True,
)


@app.command()
def describe(
    what: Annotated[
        str, typer.Argument(metavar="CONFIG|SOURCE", help="A config, or a source such as csv:FILE.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Config keys to override.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Option(help="The column of the text.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of the class.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Measure how well this checkpoint fits the texts."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Other texts to compare the features with."),
    ] = None,
    sample: Annotated[int, typer.Option(min=20, help="Most texts to use for --against.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show columns, labels, lengths, examples, duplicates, and how a checkpoint fits."""
    announce(f"description of {what}")
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


app.command()(show)


@app.command()
def build(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="[SPLIT=]SOURCE",
            help="Sources, such as test=csv:FILE; or tfds:NAME to prepare it.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The folder of the data set.")] = None,
    image_folder: Annotated[
        Path | None,
        typer.Option(
            help="A folder that image paths may lead into, besides the folder of their table."
        ),
    ] = None,
) -> None:
    """Write sources as a TFDS data set, or prepare an official one; print its source string."""
    announce(f"data set of {', '.join(what)}")
    from jaxft.analysis.build_data import build_data as story

    echo(story(what, out, image_folder))
