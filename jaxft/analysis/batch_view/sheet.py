"""The images of a batch, as the model reads them, on one contact sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxft.data.image.annotate import annotate, write_png
from jaxft.data.image.colors import enlarged
from jaxft.data.image.images import LEVELS, ImageProcessor
from jaxft.errors import UserError
from jaxft.storage.outputs import PNG_MARK, check_output
from jaxft.visible import visible

OPTION = "--out"
COLUMNS = 5
LEAST, GAP, LINE = 144, 12, 18  # pixels: of an image's shorter side, around it, a line of text
LETTER = 7  # pixels of a letter of a caption


def check_sheet(path: Path) -> None:
    """Raise a UserError if a path is not that of a PNG, or of a file that jaxft did not write."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{OPTION}: the sheet of images is a PNG, and '{path}' ends otherwise.")
    check_output(path, PNG_MARK, OPTION)


def pixels_of(values: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Return the picture of a model's input, undoing the normalization: `[H, W, 3]` uint8.

    Args:
        values: `[3, H, W]` float32; the tiles of an image, `[N, 3, H, W]`, side by side.
        processor: what made them.
    """
    if values.ndim == 4:
        values = np.concatenate(list(values), axis=-1)
    levels = values.astype(np.float64)
    if processor.mean is not None and processor.std is not None:
        mean, std = (np.array(one)[:, None, None] for one in (processor.mean, processor.std))
        levels = levels * std + mean
    if processor.factor is not None:
        levels = levels / processor.factor
    return np.rint(levels).clip(0, LEVELS - 1).astype(np.uint8).transpose(1, 2, 0)


def write_sheet(
    path: Path,
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    boxes: Sequence[Sequence[Mapping[str, Any]]],
) -> None:
    """Write pictures in rows, with the outlines of their boxes, and a caption below each.

    Args:
        path: ends in .png.
        pictures: `[H, W, 3]` uint8 each, all of one size.
        captions: of each.
        boxes: of each: `box` (left, top, right, bottom in pixels of the picture) and `label`.

    Raises:
        UserError: it cannot be written, or would replace a file that jaxft did not write.
    """
    large = [enlarged(one, LEAST) for one in pictures]
    height, width, _ = large[0].shape
    times = height // pictures[0].shape[0]
    columns = min(COLUMNS, len(large))
    rows, cell = math.ceil(len(large) / columns), (width + GAP, height + LINE + GAP)
    sheet = Image.new("RGB", (GAP + columns * cell[0], GAP + rows * cell[1]), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (pixels, caption, own) in enumerate(zip(large, captions, boxes, strict=True)):
        scaled = [{**one, "box": [times * side for side in one["box"]]} for one in own]
        left, top = GAP + number % columns * cell[0], GAP + number // columns * cell[1]
        sheet.paste(annotate(Image.fromarray(pixels), scaled, ()), (left, top))
        line = visible(" ".join(caption.split()))[: width // LETTER]
        canvas.text((left, top + height + 1), line, "black", font)
    write_png(path, sheet, OPTION)
