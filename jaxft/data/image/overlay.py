"""Masks drawn: laid over their images in a color for each class, or as files of their own."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxft.data.image.images import decode, to_rgb

Color = tuple[int, int, int]
TURN = 0.381966  # of the circle of hues from one class to the next: no two of a few are near
SHOWS = 0.6  # of a class's color, over its image
CLEAR: Color = (128, 128, 128)
URI = "data:image/png;base64,"
NO_OBJECTS = ("background", "other", "void", "unlabeled")  # a first class that is left clear


def palette(names: Sequence[str]) -> list[Color]:
    """Return a color for each class; gray for a first one that is no object."""
    colors = [_color(number) for number in range(len(names))]
    return [CLEAR, *colors[1:]] if names and names[0].lower() in NO_OBJECTS else colors


def overlaid(image: Image.Image, classes: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """Lay a mask over its image, in RGB.

    Args:
        image: the image.
        classes: `[H, W]` uint8, of its size; ids beyond the colors are left clear.
        colors: of the classes; `CLEAR` is not drawn.
    """
    pixels = np.asarray(to_rgb(image), np.float32)
    table, drawn = np.zeros((256, 3), np.float32), np.zeros(256, bool)
    table[: len(colors)] = colors
    drawn[: len(colors)] = [color != CLEAR for color in colors]
    mixed = pixels * (1 - SHOWS) + table[classes] * SHOWS
    mixed = np.where(drawn[classes][..., None], mixed, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def exact_mask(classes: np.ndarray, colors: Sequence[Color]) -> str:
    """Encode classes `[H, W]` uint8 losslessly as a `data:` URI: a PNG whose numbers are the ids.

    Args:
        classes: of each pixel.
        colors: of the classes.
    """
    image = Image.frombytes("P", classes.shape[::-1], np.ascontiguousarray(classes).tobytes())
    image.putpalette([level for color in colors for level in color])
    file = io.BytesIO()
    image.save(file, "PNG")
    return URI + base64.b64encode(file.getvalue()).decode()


def read_exact(uri: str) -> Image.Image:
    """Return the image that `exact_mask` has encoded."""
    return decode(base64.b64decode(uri.removeprefix(URI)))


def laid_over(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Lay a mask with a palette over its image."""
    levels = mask.getpalette() or []
    colors = [(levels[at], levels[at + 1], levels[at + 2]) for at in range(0, len(levels), 3)]
    return overlaid(image, np.asarray(mask), colors)


def _color(number: int) -> Color:
    levels = colorsys.hsv_to_rgb(number * TURN % 1, 0.75, 0.95 if number % 2 else 0.8)
    red, green, blue = (round(255 * level) for level in levels)
    return red, green, blue
