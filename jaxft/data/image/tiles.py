"""Tiles of pictures for a detector, and their boxes (left, top, right, bottom)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxft.data.image.images import to_rgb

LEAST_VISIBLE = 0.3  # of a box's area has to lie in a piece for the box to be learned there


def cut(
    size: tuple[int, int], shape: tuple[int, int], tile: int | None, overlap: float
) -> np.ndarray:
    """Return the pieces of a picture: `[P, 4]` left, top, width and height in its pixels.

    A tile may reach over the right and bottom edge of the picture, which is black there.

    Args:
        size: height and width of the picture.
        shape: height and width of what the model takes: a tile has that proportion.
        tile: height of a piece in the picture's pixels; None takes the picture whole, whose
            proportion changes when it is resized, as the image processor of an export does it.
        overlap: the share of a piece that the next one has too.
    """
    height, width = size
    if tile is None:
        return np.array([[0, 0, width, height]])
    wide = round(tile * shape[1] / shape[0])
    places = [
        (left, top, wide, tile)
        for top in _starts(height, tile, overlap)
        for left in _starts(width, wide, overlap)
    ]
    return np.array(places)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return the starts of tiles along an edge, evenly spaced; the last ends with the picture."""
    if length <= tile:
        return [0]
    count = int(np.ceil((length - tile) / max(tile * (1 - overlap), 1))) + 1
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def cut_image(image: Image.Image, rectangle: Sequence[int]) -> Image.Image:
    """Cut a piece out of an image: left, top, width and height; beyond the edges it is black.

    Where it reaches over one, it is in RGB: Pillow's own filling is transparent in some modes, and
    any color of a palette in others.
    """
    left, top, width, height = rectangle
    box = max(left, 0), max(top, 0), min(left + width, image.width), min(top + height, image.height)
    if box == (left, top, left + width, top + height):
        return image.crop(box)
    piece = Image.new("RGB", (width, height))
    if box[0] < box[2] and box[1] < box[3]:
        piece.paste(to_rgb(image.crop(box)), (box[0] - left, box[1] - top))
    return piece


def within(boxes: np.ndarray, piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of a picture that a piece shows: `[K, 4]` in its own pixels, and which they
    are.

    A box is cut off at the piece's edge, and left out where less than `LEAST_VISIBLE` of it is
    inside.

    Args:
        boxes: `[N, 4]`.
        piece: left, top, width and height.
    """
    left, top, width, height = piece
    moved = boxes - np.array([left, top, left, top])
    limit = np.array([width, height, width, height])
    inside = np.clip(moved, 0, limit)
    visible = np.flatnonzero(areas(inside) >= LEAST_VISIBLE * areas(boxes))
    visible = visible[areas(inside[visible]) > 0]
    return inside[visible], visible


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return `[N, 4]` -> `[N]`; 0 where a right is not beyond its left."""
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def relative(boxes: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Return boxes in pixels of a tile as DETR has them: center and size, as fractions of it."""
    size = np.array([piece[2], piece[3]], float)
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([centre / size, extent / size], axis=1)


def absolute(boxes: np.ndarray, piece: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return boxes in pixels of the picture, clipped to it: the inverse of `relative`.

    Args:
        boxes: `[N, 4]` centre, width and height as shares of the piece.
        piece: left, top, width and height.
        size: height and width of the picture.
    """
    scale, corner = np.array([piece[2], piece[3]], float), np.array(piece[:2])
    centre, extent = boxes[:, :2] * scale + corner, boxes[:, 2:] * scale
    both = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
    height, width = size
    return np.clip(both, 0, np.array([width, height, width, height]))


def unlike(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, most: float) -> np.ndarray:
    """Return the numbers of the boxes that non-maximum suppression keeps.

    Args:
        boxes: `[N, 4]`.
        labels: `[N]`; boxes of another class stay.
        scores: `[N]`.
        most: the intersection over union that two may have.

    Source: non-maximum suppression as in torchvision's `batched_nms`.
    """
    left = np.argsort(-scores, kind="stable")
    best_boxes = []
    while len(left):
        best, left = left[0], left[1:]
        best_boxes.append(best)
        alike = (labels[left] == labels[best]) & (overlaps(boxes[best], boxes[left]) > most)
        left = left[~alike]
    return np.array(best_boxes, np.int64)


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of a box and each of `[N, 4]` boxes: `[N]`."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    return shared / np.maximum(areas(box[None]) + areas(boxes) - shared, 1e-12)
