"""`jaxft config`: keys of a config, or all defaults; `jaxft configs`: the installed examples.

The schema is imported when a command is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Column, Table
from rich.text import Text

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.terminal import Overrides, console, echo
from jaxft.errors import UserError

if TYPE_CHECKING:
    from jaxft.config.keys import Key

ConfigOrKeys = Annotated[
    str | None,
    typer.Argument(
        metavar="CONFIG|KEYS",
        help="A config, to print it with all defaults; or a section such as optimizer. , a key, or "
        "task.kind=KIND, to explain only those keys.",
    ),
]


def config(
    what: ConfigOrKeys = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of configs, for editors.")
    ] = False,
) -> None:
    """Explain config keys (all, of a section, of a task), or print a config with all defaults."""
    from jaxft.config.keys import describe_keys
    from jaxft.config.load import load_config, schema_text, to_yaml

    if schema and what is not None:
        raise UserError("--schema takes no config: the schema is the same for all.", "Remove one.")
    if schema:
        echo(schema_text(), end="")
    elif what is not None and not _names_keys(what):
        echo(to_yaml(load_config(what, overrides or ()).dump()), end="")
    elif overrides:
        raise UserError(f"'{what}' names keys, and KEY=VALUE needs a config.", "Name one of them.")
    else:
        console().print(_key_table(describe_keys(what)))


def _names_keys(what: str) -> bool:
    """Return whether a word names keys and no file: `optimizer`, `optimizer.`, `task.kind=x`."""
    return not (Path(what).exists() or "/" in what or what.endswith((".yaml", ".yml", ".json")))


def _key_table(keys: list[Key]) -> Table:
    """Return the table of keys: type, default, unit, meaning, may it change on resume."""
    key_column = Column("key", no_wrap=True)  # a key in two lines cannot be searched for
    table = Table(key_column, "type", "default", "meaning", "on resume", box=box.SIMPLE_HEAD)
    section = None
    for key in keys:
        top = key.name.split(".")[0].removesuffix("[]")
        if top != section and section is not None:
            table.add_section()
        section = top
        kind = f"{key.type} ({key.unit})" if key.unit else key.type
        cells = (key.name, kind, key.default, key.meaning, key.resume)
        table.add_row(*map(Text, cells))  # plain: a slice such as [a:b] is not markup
    return table


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
