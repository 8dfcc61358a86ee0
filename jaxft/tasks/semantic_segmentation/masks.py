"""Masks: class ids of pixels, read, checked, and cut and resized as their images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from jaxft.data.image.augment import piece
from jaxft.data.image.images import ImageProcessor, decode, to_rgb
from jaxft.data.random import ExampleRandom
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.tasks.parts.images import open_image, size_of

IGNORED = 255  # of a pixel that is neither learned nor scored, as masks are held here
Box = tuple[int, int, int, int]  # left, upper, right and lower
ONE_CHANNEL = ("1", "L", "P", "I", "I;16")


@dataclass(frozen=True)
class MaskReading:
    """Meaning of the numbers of a mask.

    Attributes:
        names: the classes.
        ignore: the id of pixels that are ignored; None for none.
        reduce: whether id 0 is ignored too, and each other id one less.
    """

    names: tuple[str, ...]
    ignore: int | None
    reduce: bool

    def ids(self, pixels: np.ndarray, where: str) -> np.ndarray:
        """Return the class of each pixel, `IGNORED` for none: `[H, W]` uint8.

        Args:
            pixels: `[H, W]`, as stored.
            where: what a message calls the mask.

        Raises:
            UserError: a pixel is of no class.
        """
        stored = pixels.astype(np.int64)
        classes = stored - self.reduce
        unread = (classes < 0) | (stored == -1 if self.ignore is None else stored == self.ignore)
        wrong = ~unread & (classes >= len(self.names))
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            raise UserError(
                f"{where}: the pixel in row {row + 1}, column {column + 1} has the id "
                f"{stored[row, column]}, and there are {len(self.names)} classes, ids "
                f"{int(self.reduce)} to {len(self.names) - 1 + self.reduce}.",
                "Name all classes in task.labels, or set task.ignore to the id of pixels to leave "
                "out.",
            )
        return np.where(unread, IGNORED, classes).astype(np.uint8)


def name_of(source: Source, number: int, value: Any) -> str:
    """Return what messages call the mask of a row: its file, or the row."""
    named = isinstance(value, str) and value.strip()
    return f"'{source.path_of(number, value)}'" if named else f"the mask of {source.place(number)}"


def check_size(source: Source, number: int, value: Any, size: tuple[int, int]) -> None:
    """Raise a UserError unless a row's mask has the (height, width) of its image.

    Raises:
        UserError: or it is not there; its header alone is read.
    """
    own = size_of(source, number, value)
    if own != size:
        raise UserError(
            f"{name_of(source, number, value)} is {own[1]} x {own[0]} pixels, and its image "
            f"{size[1]} x {size[0]}.",
            "A mask has one pixel for each of its image.",
        )


def read_mask(source: Source, number: int, value: Any, reading: MaskReading) -> np.ndarray:
    """Read the mask of a row: `[H, W]` uint8 classes, `IGNORED` for none.

    The last few files stay in memory, since an image's pieces come together.

    Raises:
        UserError: it does not decode, is in color, or has a pixel of no class.
    """
    where = name_of(source, number, value)
    if not isinstance(value, str):
        return _classes_of(open_image(source, number, value), where, reading)
    path = source.path_of(number, value)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _read_file(path, changed, where, reading)


@lru_cache(maxsize=4)
def _read_file(path: Path, changed: int, where: str, reading: MaskReading) -> np.ndarray:
    del changed
    return _classes_of(decode(path), where, reading)


def _classes_of(image: Image.Image, where: str, reading: MaskReading) -> np.ndarray:
    if image.mode not in ONE_CHANNEL:
        raise UserError(
            f"{where} is in color ({image.mode}), so its pixels are no class ids.",
            "Save it with one channel, gray or with a palette, whose numbers are the ids.",
        )
    return reading.ids(np.asarray(image), where)


def cut_mask(mask: np.ndarray, rectangle: Sequence[int]) -> np.ndarray:
    """Cut a piece out of a mask `[H, W]`; beyond the edges there is no class."""
    left, top, width, height = rectangle
    own = np.full((height, width), IGNORED, np.uint8)
    inside = mask[top : top + height, left : left + width]
    own[: inside.shape[0], : inside.shape[1]] = inside
    return own


def shaped(mask: np.ndarray, processor: ImageProcessor, box: Box) -> np.ndarray:
    """Resize a box of a mask as the processor resizes its image, each pixel from the nearest one.

    Args:
        mask: `[h, w]` uint8.
        processor: it resizes to its output size.
        box: of the mask.

    Returns:
        `[H, W]` uint8.

    Source: `segmentation_maps` of `transformers`' `image_processing_pil_segformer.py`.
    """
    height, width = processor.size
    nearest = Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(mask).resize((width, height), nearest, box=box))


@dataclass(frozen=True)
class MaskAugmentation:
    """Random changes of an image and its mask.

    Attributes:
        crop: the least and most share of the area that is cut out and resized; None cuts nothing.
        flip: the probability that left and right are exchanged.
        color: the most that brightness, contrast and saturation change.
    """

    crop: Sequence[float] | None = None
    flip: float = 0.0
    color: float = 0.0

    def __call__(
        self, image: Image.Image, mask: np.ndarray, processor: ImageProcessor, chance: ExampleRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel values `[3, H, W]` float32 and classes `[H, W]` uint8, changed alike.

        Args:
            image: a piece of one.
            mask: `[h, w]` uint8.
            processor: it resizes to its output size.
            chance: the random numbers.
        """
        image, (height, width) = to_rgb(image), processor.size
        box: Box = (0, 0, *image.size)
        if self.crop is not None:
            box = piece(image.size, (self.crop[0], self.crop[1]), chance)
        filter_ = Image.Resampling(processor.resample)
        image, classes = (
            image.resize((width, height), filter_, box=box),
            shaped(mask, processor, box),
        )
        mirrored, *strengths = chance.uniform(4).tolist()
        changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind, strength in zip(changes, strengths, strict=True):
            image = kind(image).enhance(1 + (2 * strength - 1) * self.color)
        pixels = np.asarray(image)
        if mirrored < self.flip:
            pixels, classes = pixels[:, ::-1], classes[:, ::-1]
        return processor.values(pixels), classes
