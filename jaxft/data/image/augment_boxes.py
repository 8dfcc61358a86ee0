"""Augmentation of images with boxes: windows of another size and place, flips, mosaics.

A window is a rectangle of an image, which may reach over its edge and is black there; what it shows
becomes the model's input. All random numbers come from the `ExampleRandom` of one example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxft.data.image.tiles import within
from jaxft.data.random import ExampleRandom

NEAREST = 0.3  # of a mosaic's middle to an edge, as a share of the side

# The number of a piece, and a window of its image -> what the window shows, its boxes, their labels
Read = Callable[[int, np.ndarray], tuple[Image.Image, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class BoxAugmentation:
    """Random changes of an image with boxes.

    Attributes:
        scale: how many times larger things become, at least and at most; None leaves them.
        flip, flip_vertical: the probability that left and right, or top and bottom, are exchanged.
        mosaic: the probability that an input is put together of four windows.
    """

    scale: Sequence[float] | None = None
    flip: float = 0.0
    flip_vertical: float = 0.0
    mosaic: float = 0.0

    @property
    def most_seen(self) -> float:
        """Return how many times the area of a piece a window has at most."""
        return 1.0 if self.scale is None else max(1.0, 1.0 / self.scale[0] ** 2)


def augment_boxes(
    number: int,
    pieces: np.ndarray,
    size: tuple[int, int],
    how: BoxAugmentation,
    chance: ExampleRandom,
    read: Read,
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Return a randomly changed image, its boxes `[N, 4]` as shares of it, and their labels `[N]`.

    Boxes are left, top, right, bottom. One that is cut off by more than `tiles.within` allows is
    left out.

    Args:
        number: the piece that it starts from.
        pieces: `[P, 4]` left, top, width and height in their images.
        size: height and width of the model's input.
        how: the settings.
        chance: the random numbers.
        read: reads a window of a piece's image.
    """
    mixed, mirrored, turned = chance.uniform(3).tolist()
    if mixed < how.mosaic:
        image, boxes, labels = _mosaic(number, pieces, size, how, chance, read)
    else:
        view = window(pieces[number], (1.0, 1.0), how, chance)
        image, boxes, labels = read(number, view)
        boxes = boxes / np.tile(view[2:], 2)
    if mirrored < how.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    if turned < how.flip_vertical:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        boxes = np.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1]], axis=1)
    return image, boxes, labels


def window(
    piece: np.ndarray, shares: tuple[float, float], how: BoxAugmentation, chance: ExampleRandom
) -> np.ndarray:
    """Return a random window of a piece's image: left, top, width and height in whole pixels.

    It is inside the piece, or the piece inside it. Scales are spread evenly by their logarithm.

    Args:
        piece: likewise.
        shares: of the input's width and height that the window is to fill.
        how: has the scale.
        chance: the random numbers.
    """
    power, across, down = chance.uniform(3).tolist()
    least, most = (1.0, 1.0) if how.scale is None else (math.log(one) for one in how.scale)
    times = 1.0 if how.scale is None else math.exp(least + power * (most - least))
    extent = np.maximum(1, np.rint(piece[2:] * np.array(shares) / times)).astype(np.int64)
    corner = piece[:2] + np.rint(np.array([across, down]) * (piece[2:] - extent)).astype(np.int64)
    return np.concatenate([corner, extent])


def _mosaic(
    number: int,
    pieces: np.ndarray,
    size: tuple[int, int],
    how: BoxAugmentation,
    chance: ExampleRandom,
    read: Read,
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Put four windows together, of this piece and of three others, round a random middle.

    Things are as large in each as in a whole input.

    Source: Bochkovskiy et al. (2020), https://arxiv.org/abs/2004.10934, section 3.3.
    """
    height, width = size
    across, down = (NEAREST + chance.uniform(2) * (1 - 2 * NEAREST)).tolist()
    middle = (round(across * width), round(down * height))
    others = [number, *chance.below(len(pieces), 3).tolist()]
    canvas, boxes, labels = Image.new("RGB", (width, height)), [], []
    for corner, other in enumerate(others):
        left, right = (0, middle[0]) if corner % 2 == 0 else (middle[0], width)
        top, bottom = (0, middle[1]) if corner < 2 else (middle[1], height)
        shares = ((right - left) / width, (bottom - top) / height)
        view = window(pieces[other], shares, how, chance)
        image, own, named = read(other, view)
        image = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        canvas.paste(image, (left, top))
        start = np.array([left / width, top / height])
        boxes.append(own / np.tile(view[2:], 2) * np.tile(shares, 2) + np.tile(start, 2))
        labels.append(named)
    return canvas, np.concatenate(boxes), np.concatenate(labels)


def shown_in(
    corners: np.ndarray, labels: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes `[N, 4]` that a window shows, in its own pixels, and their labels."""
    boxes, visible = within(corners, view)
    return boxes, labels[visible]
