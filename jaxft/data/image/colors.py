"""Images as rows of colors from a short list, as an ImageGPT reads and generates them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxft.data.image.images import LEVELS, ImageProcessor

GAP, GREY = 2, 128  # pixels between pictures on a sheet, and their level


def colors_of(values: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Return the nearest color of each pixel, row by row.

    The arithmetic is `transformers`', in its types, so that ties fall as they do there.

    Args:
        values: pixel values `[3, H, W]` float32, as the processor makes them.
        processor: it has the colors.

    Returns:
        `[H W]` int32, which of `processor.clusters`.

    Source: `color_quantize` of `transformers`' `image_processing_pil_imagegpt.py`.
    """
    pixels, clusters = values.transpose(1, 2, 0).reshape(-1, 3), np.array(processor.clusters)
    apart = np.square(pixels).sum(1)[:, None] - 2 * np.matmul(pixels, clusters.T)
    return np.argmin(apart + np.square(clusters.T).sum(0), axis=1).astype(np.int32)


def painted(colors: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Return the picture of colors `[H W]`, as `[H, W, 3]` uint8, undoing the processor."""
    levels = np.array(processor.clusters)[colors].reshape(*processor.size, 3)
    if processor.mean is not None and processor.std is not None:
        levels = levels * processor.std + processor.mean
    if processor.factor is not None:
        levels = levels / processor.factor
    return np.rint(levels).clip(0, LEVELS - 1).astype(np.uint8)


def contact_sheet(pictures: Sequence[np.ndarray], least: int = 28) -> np.ndarray:
    """Arrange pictures in rows, side by side: `[H, W, 3]` uint8.

    Args:
        pictures: `[h, w, 3]` uint8 each, one or more, all of one size.
        least: pixels a side of each at least; smaller ones are enlarged by a whole factor.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    pictures = [enlarged(one, least) for one in pictures]
    height, width, _ = pictures[0].shape
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), GREY, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def enlarged(pixels: np.ndarray, least: int) -> np.ndarray:
    """Repeat the pixels of a picture `[H, W, 3]` until its shorter side has at least `least`."""
    times = math.ceil(least / min(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
