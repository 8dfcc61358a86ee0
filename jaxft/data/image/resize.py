"""Sizes that images are brought to, and what brings them there where Pillow does not."""

from __future__ import annotations

import numpy as np
from PIL import Image

Line = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # two pixels, and their weights


def resize_floats(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize bilinearly: `[C, H, W]` -> `[C, H', W']` float32.

    Each output pixel is of the four nearest ones, however much smaller the image becomes. It is
    what `torch.nn.functional.interpolate(mode="bilinear", antialias=False)` computes, but for the
    last digit, which depends there on the number of threads.

    Args:
        values: float32.
        size: H' and W'.
    """
    if values.shape[1:] == size:
        return values
    (upper, lower, over, under), (left, right, before, behind) = (
        _line(old, new) for old, new in zip(values.shape[1:], size, strict=True)
    )

    def across(rows: np.ndarray) -> np.ndarray:
        return rows[:, :, left] * before + rows[:, :, right] * behind

    top, bottom = across(values[:, upper]), across(values[:, lower])
    return top * over[:, None] + bottom * under[:, None]


def _line(old: int, new: int) -> Line:
    """Return for each pixel of a new line the two of the old that it is of, and their weights."""
    step, half = np.float32(old) / np.float32(new), np.float32(0.5)
    at = (step * (np.arange(new, dtype=np.float32) + half) - half).clip(0)
    first = np.minimum(at.astype(np.int64), old - 1)
    share = (at - first.astype(np.float32)).clip(0, 1).astype(np.float32)
    return first, np.minimum(first + 1, old - 1), np.float32(1) - share, share


def target_size(image: Image.Image, resize: tuple[int, int] | int) -> tuple[int, int]:
    """Return the height and width to resize to, the longer edge rounded down."""
    if isinstance(resize, tuple):
        return resize
    width, height = image.size
    if width <= height:
        return max(int(resize * height / width), 1), resize
    return resize, max(int(resize * width / height), 1)


def crop_middle(pixels: np.ndarray, crop: tuple[int, int], to_nearest: bool = False) -> np.ndarray:
    """Return the middle `[height, width, 3]` of `[H, W, 3]`, with black around a smaller image.

    Args:
        pixels, crop: the image, and the height and width to cut out.
        to_nearest: half a pixel goes to the even number, as in torchvision, and not down.
    """
    for axis, wanted in enumerate(crop):
        missing = wanted - pixels.shape[axis]
        if missing > 0:
            # An odd row or column goes before the image.
            around = [(0, 0)] * 3
            around[axis] = ((missing + 1) // 2, missing // 2)
            pixels = np.pad(pixels, around)
        else:
            start = round(-missing / 2) if to_nearest else -missing // 2
            pixels = pixels[(slice(None),) * axis + (slice(start, start + wanted),)]
    return pixels
