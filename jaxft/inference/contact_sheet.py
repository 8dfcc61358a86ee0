"""Contact sheets: the images that a search matched, in order, as a PNG or an HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from jaxft.data.image.annotate import write_png
from jaxft.data.image.images import decode, to_rgb
from jaxft.errors import UserError
from jaxft.storage.outputs import HTML_MARK, PNG_MARK, check_output, write_output
from jaxft.tasks.parts.images import picture

MARKS = {".png": PNG_MARK, ".html": HTML_MARK}
COLUMNS = 5
SIDE, GAP, LINE = 144, 16, 18  # pixels: of an image, around it, and of a line of text
MOST_LETTERS = 22  # of a file name below its image
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="generator" content="jaxft"><title>{title}</title><style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, 9em); gap: 1em; padding: 0 }}
li {{ list-style-position: inside; overflow-wrap: anywhere }}
img {{ display: block; width: 96px; height: 96px; object-fit: contain }}
</style></head><body><h1>{title}</h1><ol>
{items}
</ol></body></html>
"""


def check_sheet(path: Path) -> None:
    """Raise a UserError if `path` has another extension, or is a file that jaxft did not write."""
    kind = path.suffix.lower()
    if kind not in MARKS:
        raise UserError(
            f"The contact sheet '{path}' is neither .png nor .html.", "Change its extension."
        )
    check_output(path, MARKS[kind], "--out")


def write_sheet(path: Path, title: str, matches: Sequence[Mapping[str, Any]]) -> None:
    """Write a contact sheet.

    Args:
        path: ends in .png or .html.
        title: the query.
        matches: `rank`, `similarity` and `file` of each image, the best first.

    Raises:
        UserError: it cannot be written, or would replace a file that jaxft did not write.
    """
    kind = path.suffix.lower()
    if kind == ".html":
        write_output(path, _page(title, matches), MARKS[kind], "--out")
        return
    write_png(path, _sheet(title, matches), "--out")


def _sheet(title: str, matches: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Lay out the images in rows on white, with rank, similarity and file name below each."""
    rows = math.ceil(len(matches) / COLUMNS)
    cell = (SIDE + GAP, SIDE + 2 * LINE + GAP)
    top = GAP + 2 * LINE
    sheet = Image.new("RGB", (GAP + COLUMNS * cell[0], top + rows * cell[1]), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    canvas.text((GAP, GAP), title, "black", ImageFont.load_default(18))
    for number, match in enumerate(matches):
        left = GAP + number % COLUMNS * cell[0]
        upper = top + number // COLUMNS * cell[1]
        image = to_rgb(decode(Path(match["file"])))
        scale = SIDE / max(image.size)
        image = image.resize([max(round(scale * side), 1) for side in image.size])
        sheet.paste(image, (left + (SIDE - image.width) // 2, upper + (SIDE - image.height) // 2))
        caption = f"{match['rank']}   {match['similarity']:.3f}"
        canvas.text((left, upper + SIDE + 2), caption, "black", font)
        name = Path(match["file"]).name[:MOST_LETTERS]
        canvas.text((left, upper + SIDE + LINE), name, "gray", font)
    return sheet


def _page(title: str, matches: Sequence[Mapping[str, Any]]) -> str:
    """Return a self-contained HTML page."""
    items = [
        f'<li><img alt="" src="{picture(decode(Path(match["file"])))}">'
        f"{match['similarity']:.3f}<br>{html.escape(Path(match['file']).name)}</li>"
        for match in matches
    ]
    return PAGE.format(title=html.escape(title), items="\n".join(items))
