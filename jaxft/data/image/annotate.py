"""Pictures annotated with boxes, labeled ones and detected ones, or with predicted masks."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from jaxft.data.image.images import decode, to_rgb
from jaxft.data.image.overlay import laid_over, read_exact
from jaxft.errors import UserError
from jaxft.storage.outputs import PNG_MARK, check_apart, distinct_name, marked_png, write_output

LABELED, DETECTED = (80, 220, 120), (255, 140, 0)


def annotate(
    image: Image.Image, gold: Sequence[Mapping[str, Any]], detected: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """Return a copy of a picture in RGB with boxes: labeled ones green, detected ones orange.

    Args:
        image: the picture.
        gold: each with `box` (left, top, right, bottom in pixels) and `label`.
        detected: likewise, and `score`.
    """
    picture = to_rgb(image).copy()
    pen, width = ImageDraw.Draw(picture), max(1, round(max(image.size) / 500))
    for one in gold:
        pen.rectangle(one["box"], outline=LABELED, width=width)
    for one in detected:
        pen.rectangle(one["box"], outline=DETECTED, width=width)
        pen.text((one["box"][0] + 2, one["box"][1] + 1), f"{one['score']:.2f}", fill=DETECTED)
    return picture


def write_png(path: Path, image: Image.Image, option: str) -> None:
    """Write a picture at a path that a person chose.

    Args:
        path: the file; an existing one is replaced only if jaxft wrote it.
        image: the picture.
        option: the command line option that named the path, such as `--out`.

    Raises:
        UserError: another file has that name, or it cannot be written.
    """
    content = io.BytesIO()
    image.save(content, "PNG")
    write_output(path, marked_png(content.getvalue()), PNG_MARK, option)


def annotate_files(folder: Path, predictions: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each prediction with `annotated`: the path of a copy of its image with what it shows.

    These are boxes, or the mask laid over; the mask itself is written beside it, and its path is
    the prediction's `mask`.

    An existing file is replaced only if it is an earlier picture of jaxft, and an input image never
    is. Of two images of one name the second becomes `NAME-2.png`.

    Args:
        folder: the output folder; it is created.
        predictions: each with `file`, and `objects` or a `mask`.

    Raises:
        UserError: a prediction without boxes or a mask in an image; the folder holds the input
            image, or a file of that name that jaxft did not write.
    """
    taken: set[str] = set()
    for line in predictions:
        if not {"objects", "mask"} & set(line) or "file" not in line:
            raise UserError(
                "--annotate needs a model that detects or segments, with image files.", "Remove it."
            )
        check_apart(folder, [line["file"]], "--annotate")
        target = folder / distinct_name(Path(line["file"]).stem, ".png", taken)
        image, line = decode(line["file"]), line | {"annotated": str(target)}
        if "mask" not in line:
            write_png(target, annotate(image, (), line["objects"]), "--annotate")
            yield line
            continue
        mask, own = read_exact(line["mask"]), target.with_name(f"{target.stem}-mask.png")
        write_png(target, laid_over(image, mask), "--annotate")
        write_png(own, mask, "--annotate")
        yield line | {"mask": str(own)}
