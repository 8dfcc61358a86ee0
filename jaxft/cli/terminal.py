"""Arguments and output that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console, RenderableType

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


def print_report(report: Report, as_json: bool, *, highlight: bool = True) -> None:
    """Print the result of a command; `highlight` colors its numbers and strings."""
    if as_json:
        typer.echo(report.to_json())
    else:
        console(highlight).print(report.render())


def print_json_lines(records: Iterable[Mapping[str, Any]]) -> None:
    """Print each record as it comes, as JSON on a line of its own."""
    for record in records:
        typer.echo(json.dumps(record, ensure_ascii=False))


def console(highlight: bool = True) -> Console:
    """Return the terminal; a file or a pipe is 120 columns wide."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=highlight)
