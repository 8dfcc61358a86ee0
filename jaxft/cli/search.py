"""`jaxft search`: images, or texts, most similar to a query.

The story is imported when it is called, as in `cli/main.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from jaxft.cli.parts.paths import folder_named
from jaxft.cli.parts.process import prepare_computation
from jaxft.cli.parts.terminal import announce, console, echo, print_json_lines
from jaxft.cli.parts.together import is_another
from jaxft.errors import UserError

if TYPE_CHECKING:
    from jaxft.inference.search import SearchResult

MOST_NOTES = 5  # skipped images that are listed by name; more are only counted


Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        parser=folder_named,
        help="A run of the task contrastive, or embedding for --texts.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="The folder of images to search, with its subfolders."),
]
Texts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Search texts instead: a file with one per line, or a table (.csv, .jsonl, .parquet) "
        "that has them in the column of the run's task.positive.",
    ),
]
Like = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Search for images similar to this one instead of words."),
]
Sheet = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=folder_named,
        help="Also write a contact sheet: .png or .html.",
    ),
]


def search(
    run: Run,
    words: Annotated[
        str | None,
        typer.Argument(metavar="WORDS", help="The query.", show_default=False),
    ] = None,
    images: Images = None,
    texts: Texts = None,
    image: Like = None,
    best: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    out: Sheet = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """Find the images of a folder most similar to words or to an image, or find texts."""
    announce(f"search with {run}")
    if texts is not None:
        _search_texts(run, words, texts, best, as_json, others=(images, image, out))
        return
    if images is None:
        raise UserError("jaxft search needs something to search.", "Add --images or --texts.")
    from jaxft.inference.search import search as story

    prepare_computation()
    result = story(run, words, images, image=image, best=best, out=out)
    if is_another():
        return
    for note in result.skipped[:MOST_NOTES]:
        echo(f"jaxft: skipped: {note}", err=True)
    if len(result.skipped) > MOST_NOTES:
        echo(f"jaxft: and {len(result.skipped) - MOST_NOTES} more", err=True)
    if as_json:
        print_json_lines(result.matches)
        return
    console().print(_table(result))
    if result.sheet is not None:
        echo(result.sheet)


def _search_texts(
    run: Path, words: str | None, file: Path, best: int, as_json: bool, others: tuple
) -> None:
    """Print the lines of a file most similar to some words."""
    from jaxft.inference.search_texts import search_texts as story

    if words is None or any(other is not None for other in others):
        raise UserError(
            "--texts needs a query in words, and does not combine with images.",
            "Remove --images, --image and --out.",
        )
    prepare_computation()
    matches = story(run, words, file, best)
    if is_another():
        return
    if as_json:
        print_json_lines(matches)
        return
    table = Table("", "similarity", "line", "text", box=box.SIMPLE_HEAD)
    for match in matches:
        rank, alike = str(match["rank"]), f"{match['similarity']:.3f}"
        table.add_row(rank, alike, str(match["line"]), Text(match["text"], overflow="fold"))
    console().print(table)


def _table(result: SearchResult) -> Table:
    """Return the table of matches, with the number of images compared."""
    caption = f"{result.searched:,} images, {result.embedded:,} of them new"
    table = Table("", "similarity", "image", box=box.SIMPLE_HEAD, caption=caption)
    for match in result.matches:
        file = Text(match["file"], overflow="fold")  # plain: brackets in a name are not markup
        table.add_row(str(match["rank"]), f"{match['similarity']:.3f}", file)
    return table
