"""Boxes drawn into a picture: those that are there, and those that were found."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from jaxft.data.image.images import decode, to_rgb
from jaxft.errors import UserError
from jaxft.storage.outputs import PNG_MARK, check_apart, distinct_name, marked_png, write_output

GOLD, FOUND = (80, 220, 120), (255, 140, 0)


def draw(
    image: Image.Image, gold: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """Return a copy of a picture in RGB with boxes: green what is there, orange what was found.

    Args:
        image: the picture.
        gold: each with `box` (left, top, right, bottom in pixels) and `label`.
        found: likewise, and `score`.
    """
    drawn = to_rgb(image).copy()
    pen, width = ImageDraw.Draw(drawn), max(1, round(max(image.size) / 500))
    for one in gold:
        pen.rectangle(one["box"], outline=GOLD, width=width)
    for one in found:
        pen.rectangle(one["box"], outline=FOUND, width=width)
        pen.text((one["box"][0] + 2, one["box"][1] + 1), f"{one['score']:.2f}", fill=FOUND)
    return drawn


def write_png(path: Path, image: Image.Image, option: str) -> None:
    """Write a picture where a person said.

    Args:
        path: the file; one that is there is replaced only where jaxft wrote it.
        image: the picture.
        option: how the person named the place, such as `--out`.

    Raises:
        UserError: something else is there, or it cannot be written.
    """
    content = io.BytesIO()
    image.save(content, "PNG")
    write_output(path, marked_png(content.getvalue()), PNG_MARK, option)


def drawn_into(folder: Path, said: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each line as it comes, with `drawn`: its image with the boxes drawn, a PNG in the
    folder.

    A file there is replaced only where it is an earlier picture of jaxft's, and no image that was
    read ever is. Of two images of one name the second becomes `NAME-2.png`.

    Args:
        folder: made where it is not there.
        said: what a run says of images: `file` and `objects`.

    Raises:
        UserError: a line that says nothing of boxes in an image; the folder is that of an image
            or holds a file of that name that is not ours.
    """
    taken: set[str] = set()
    for line in said:
        if "objects" not in line or "file" not in line:
            raise UserError("--draw is for boxes in images.", "Leave it out.")
        check_apart(folder, [line["file"]], "--draw")
        target = folder / distinct_name(Path(line["file"]).stem, ".png", taken)
        write_png(target, draw(decode(line["file"]), (), line["objects"]), "--draw")
        yield line | {"drawn": str(target)}
