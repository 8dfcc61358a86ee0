"""`jaxft search`: the images of a folder that are most like some words, or like an image.

The story is imported when it is asked for, as in `cli.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from jaxft.engine.search import Found

MOST_NOTES = 5  # images that are left out by name; of more, the number is told


def search(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run of the contrastive task.")
    ],
    images: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to look, with all folders in it.")
    ],
    words: Annotated[
        str | None,
        typer.Argument(metavar="WORDS", help="What to look for.", show_default=False),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Look for images like this one instead.")
    ] = None,
    best: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write them as a contact sheet too: .png or .html."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Find the images of a folder that are most like some words, or like an image."""
    from jaxft.engine.search import search as story

    found = story(run, words, images, image=image, best=best, out=out)
    for note in found.skipped[:MOST_NOTES]:
        print(f"jaxft: left out: {note}", file=sys.stderr)
    if len(found.skipped) > MOST_NOTES:
        print(f"jaxft: and {len(found.skipped) - MOST_NOTES} more", file=sys.stderr)
    if as_json:
        for match in found.matches:
            typer.echo(json.dumps(match, ensure_ascii=False))
        return
    Console(width=None if sys.stdout.isatty() else 120).print(_table(found))
    if found.sheet is not None:
        typer.echo(found.sheet)


def _table(found: Found) -> Table:
    """The matches, and how many images were compared."""
    told = f"{found.searched:,} images, {found.embedded:,} of them new"
    table = Table("", "similarity", "image", box=box.SIMPLE_HEAD, caption=told)
    for match in found.matches:
        file = Text(match["file"], overflow="fold")  # plain: brackets in a name are no markup
        table.add_row(str(match["rank"]), f"{match['similarity']:.3f}", file)
    return table
