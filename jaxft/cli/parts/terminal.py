"""Arguments and output that several commands share."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console, RenderableType

from jaxft.report.terminal.console import EscapingConsole
from jaxft.visible import visible

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="The config, a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Config keys to override, such as optimizer.lr=3e-5.",
        show_default=False,
    ),
]


class Report(Protocol):
    """The result of a command, for a person and for a program."""

    def to_json(self) -> str:
        """Return it as JSON."""

    def render(self) -> RenderableType:
        """Return it as rich prints it."""


def echo(text: object, end: str = "\n", err: bool = False) -> None:
    """Print a text with its control characters written out, at once."""
    stream = sys.stderr if err else sys.stdout
    print(visible(str(text)), end=end, file=stream, flush=True)


def announce(what: str) -> None:
    """Show a person at once that a command has started: importing jax takes seconds.

    Args:
        what: the command's subject, such as `plan of mine.yaml`. Where standard error is no
            terminal nothing is printed: a program that reads it expects errors alone.
    """
    if sys.stderr.isatty():
        echo(f"jaxft {importlib.metadata.version('jaxft')}: {what}", err=True)


def print_report(report: Report, as_json: bool, *, highlight: bool = True) -> None:
    """Print the result of a command; `highlight` colors its numbers and strings."""
    if as_json:
        echo(report.to_json())
    else:
        console(highlight).print(report.render())


def print_json_lines(records: Iterable[Mapping[str, Any]]) -> None:
    """Print each record as it comes, as JSON on a line of its own."""
    for record in records:
        echo(json.dumps(record, ensure_ascii=False))


def write_json_lines(records: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write each record as it comes to a new file, which appears when all are written.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    from jaxft.storage.files import written_aside
    from jaxft.storage.outputs import check_new

    check_new(file)
    count = 0
    with written_aside(file) as aside, aside.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    echo(f"{file}: {count:,} predictions", err=True)


def console(highlight: bool = True) -> Console:
    """Return the terminal; a file or a pipe is 120 columns wide."""
    return EscapingConsole(width=None if sys.stdout.isatty() else 120, highlight=highlight)
