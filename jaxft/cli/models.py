"""`jaxft models`: the model types that are supported, or what can be done with one checkpoint.

The catalog is imported when the command is called, as in `cli/main.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jaxft.cli.parts.terminal import console, echo, print_report
from jaxft.errors import UserError

if TYPE_CHECKING:
    from jaxft.analysis.model_catalog import Entry


def models(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN|CHECKPOINT",
            help="A part of a model type, architecture or task (llama, ForMaskedLM, seq2seq); or a "
            "checkpoint: a folder, package:module/path or a hub id, of which only config.json is "
            "read.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the supported models, or tell what a checkpoint can be used for."""
    from jaxft.analysis.model_catalog import find_entries, inspect_checkpoint, suggestion

    if what is not None and _is_checkpoint(what):
        abilities = inspect_checkpoint(what)
        print_report(abilities, as_json, highlight=False)
        if not abilities.loads:
            raise typer.Exit(1)
        return
    entries = find_entries(what)
    if not entries:
        raise UserError(
            f"No supported model, architecture or task matches '{what}'.",
            suggestion(what or "") or "A hub id has the form owner/name; `jaxft models` lists all.",
        )
    if as_json:
        echo(json.dumps([vars(entry) for entry in entries], indent=2))
    else:
        console(highlight=False).print(_table(entries))


def _is_checkpoint(what: str) -> bool:
    """Return whether a word is a checkpoint and no pattern."""
    return what.startswith("package:") or "/" in what or "@" in what or Path(what).is_dir()


def _table(entries: list[Entry]) -> Table:
    """Return the table of the architectures; all of them are loaded and exported."""
    table = Table("model_type", "architecture", "task.kind", "generates", box=box.SIMPLE_HEAD)
    for entry in entries:
        kinds = ", ".join(entry.trains) or "-"
        cells = (entry.model_type, entry.architecture, kinds, "yes" if entry.generates else "-")
        table.add_row(*map(Text, cells))
    table.caption = (
        f"{len(entries)} architectures; each is loaded and exported, and trained for its task.kind."
    )
    return table
