"""Images of a vision-language model: whole, or in tiles as Idefics3's processor cuts them.

The longer edge is resized to as many tiles as the grid has a side; the tiles of the image are then
followed by the whole image as one more. A grid of 1 is the whole image alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxft.data.image.config import FILES, read_processor
from jaxft.data.image.images import ImageProcessor, load_image_processor, to_rgb
from jaxft.data.image.processors import TILES
from jaxft.errors import UserError
from jaxft.storage.json_files import read_json_object

TILED = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
MOST_EDGE = 4096  # pixels of the longer edge, which transformers has no more of


class Cut(NamedTuple):
    """Rows and columns of an image's tiles; 0 of both where it is one tile, the whole."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """Return the number of tiles, the whole image included."""
        return self.rows * self.columns + 1


@dataclass(frozen=True)
class Grid:
    """Reading of an image as tiles.

    Args:
        processor: of one tile.
        side: the tiles along the longer edge.
    """

    processor: ImageProcessor
    side: int

    @property
    def tile(self) -> int:
        """Return the pixels of a tile's side."""
        return self.processor.size[0]

    @property
    def most(self) -> int:
        """Return the most tiles that an image has, a square: all have room for as many."""
        return self.cut((1, 1)).tiles

    @property
    def tiled(self) -> bool:
        """Return whether an image is an array of tiles, were it one."""
        return self.processor.kind in TILED

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image: `[most, 3, H, W]`, or `[3, H, W]` without tiles."""
        one = (3, *self.processor.size)
        return (self.most, *one) if self.tiled else one

    @property
    def fingerprint(self) -> str:
        """Return a text that changes with everything that is done to an image."""
        return f"{self.processor.fingerprint} {self.side}"

    def cut(self, size: tuple[int, int]) -> Cut:
        """Return the rows and columns of an image of (height, width)."""
        if self.side == 1:
            return Cut(0, 0)
        height, width = _in_tiles(_longest(size, self.side * self.tile), self.tile)
        return Cut(height // self.tile, width // self.tile)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return the pixel values of an image, float32 of `shape`; of tiles that lack zeros."""
        if not self.tiled:
            return self.processor(image)
        tiles = self._tiles(to_rgb(image) if self.processor.blend or image.mode != "RGB" else image)
        values = np.zeros((self.most, 3, self.tile, self.tile), np.float32)
        for number, tile in enumerate(tiles):
            values[number] = self.processor(tile)
        return values

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        """Return the tiles of an image, the last of them the whole of it, not yet resized."""
        size, edge = (image.height, image.width), self.side * self.tile
        image = self._resized(image, _longest(size, edge))
        if self.side == 1:
            return [image]
        image = self._resized(image, _in_tiles((image.height, image.width), self.tile))
        tops, lefts = (range(0, edge, self.tile) for edge in (image.height, image.width))
        boxes = [(left, top, left + self.tile, top + self.tile) for top in tops for left in lefts]
        return [*(image.crop(box) for box in boxes), image]

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize(size[::-1], Image.Resampling(self.processor.resample))


def check_grid(grid: Grid, tiled: bool, where: str) -> None:
    """Raise a UserError unless images are read as a model takes them.

    Args:
        grid: how they are read.
        tiled: whether the model takes tiles.
        where: what the message calls the tiles along the longer edge.
    """
    kind, side = grid.processor.kind, grid.side
    if grid.tiled != tiled or (side > 1 and not tiled):
        problem = "which cuts no tiles" if tiled or side > 1 else "which cuts tiles"
        raise UserError(
            f"model.checkpoint: its image processor is a {kind}, {problem}.",
            f"Of tiles there are {' and '.join(TILED)}."
            if grid.tiled != tiled
            else f"Leave {where} out.",
        )
    if tiled and side * grid.tile > MOST_EDGE:
        raise UserError(
            f"{where}: {side} tiles of {grid.tile} pixels are more than {MOST_EDGE:,}.",
            f"Set it to {MOST_EDGE // grid.tile} or less.",
        )


def stored_side(folder: Path) -> int:
    """Return the tiles along the longer edge as a checkpoint's processor has them; 1 without."""
    _, fields = read_processor(folder)
    if load_image_processor(folder).kind not in TILED:
        return 1
    whole = {**TILES, **{name: value for name, value in fields.items() if value is not None}}
    if not whole["do_image_splitting"]:
        return 1
    return max(1, whole["size"]["longest_edge"] // whole["max_image_size"]["longest_edge"])


def grid_fields(folder: Path, side: int) -> dict[str, dict[str, Any]]:
    """Return the content of a checkpoint's processor file with a grid in it, by name; if any.

    Args:
        folder: the checkpoint's.
        side: the tiles along the longer edge.
    """
    file, fields = read_processor(folder)
    if load_image_processor(folder).kind not in TILED:
        return {}
    own = fields.get("max_image_size") or TILES["max_image_size"]
    size = {"longest_edge": side * own["longest_edge"]}
    fields = {**fields, "size": size, "do_image_splitting": side > 1}
    if file.name == FILES[0]:
        fields = read_json_object(file) | {"image_processor": fields}
    return {file.name: fields}


def _longest(size: Sequence[int], edge: int) -> tuple[int, int]:
    """Return the (height, width) whose longer edge has `edge` pixels, and the other an even number.

    Where the other one comes out longer by that, it is cut as transformers cuts it.
    """
    height, width = size
    if width >= height:
        other = int(edge / (width / height))
        return max(other + other % 2, 1), edge
    other = int(edge * (width / height))
    return edge, max(other + other % 2, 1)


def _in_tiles(size: Sequence[int], tile: int) -> tuple[int, int]:
    """Return the next larger (height, width) that are whole numbers of tiles."""
    height, width = size
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        return math.ceil(int(width / ratio) / tile) * tile, width
    height = math.ceil(height / tile) * tile
    return height, math.ceil(int(height * ratio) / tile) * tile
