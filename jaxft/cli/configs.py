"""`jaxft configs`: the example configs that are installed with jaxft.

They are read when a command is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import console, echo

app = typer.Typer(
    help="List, show or copy the example configs that are installed with jaxft.",
    no_args_is_help=False,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name of the list, such as sentiment.")]


@app.callback(invoke_without_command=True)
def configs(context: typer.Context) -> None:
    """List the example configs, show one, or copy one to edit it."""
    if context.invoked_subcommand is None:
        list_configs()


@app.command("list")
def list_configs() -> None:
    """List the example configs: name, task, and what each shows."""
    from jaxft.config.examples import list_examples

    table = Table("name", "task", "about", "jaxft assets", box=box.SIMPLE_HEAD)
    for one in list_examples():
        table.add_row(*map(Text, (one.name, one.task, one.about, " ".join(one.assets))))
    console(highlight=False).print(table)


@app.command()
def show(name: Name) -> None:
    """Print an example config."""
    from jaxft.config.examples import read_example

    echo(read_example(name).text, end="")


@app.command()
def copy(
    name: Name,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            parser=folder_named,
            help="The new file, or a folder for it; NAME.yaml here by default.",
        ),
    ] = None,
) -> None:
    """Copy an example config, and print the path of the copy."""
    from jaxft.config.examples import copy_example, read_example

    target = copy_example(name, file)
    echo(target)
    example = read_example(name)
    if example.assets:
        echo(f"Its model and data: jaxft assets {' '.join(example.assets)}", err=True)
    echo(f"Next: jaxft train {target}", err=True)
