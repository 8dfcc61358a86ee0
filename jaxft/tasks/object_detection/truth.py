"""The true boxes of an image, read from a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.labels import BadValue, class_id


@dataclass(frozen=True)
class Boxes:
    """The true boxes of an image.

    Attributes:
        corners: `[N, 4]` left, top, right, bottom in pixels.
        labels: `[N]` class ids.
        crowd: `[N]` whether a box surrounds many objects: not learned, ignored in the scores.
    """

    corners: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


def read_boxes(
    objects: Any, names: Sequence[str], size: tuple[int, int], form: str, row: str
) -> Boxes:
    """Read a row's objects: `bbox`, `label` and perhaps `crowd` (TFDS's `is_crowd`).

    Args:
        objects: the row's cell.
        names: the classes.
        size: height and width of the image.
        form: `pascal_voc` (left, top, right, bottom), `coco` (left, top, width, height) or `tfds`
            (top, left, bottom, right as shares of the image).
        row: the row's name in messages, for objects without a location of their own.

    Raises:
        UserError: a box is outside the image or has no area, or a label is no class.
    """
    objects = dict(objects or {"bbox": [], "label": []})
    classes = objects.get("label", objects.get("category", objects.get("categories", [])))
    boxes = np.array(list(objects["bbox"]), float).reshape(-1, 4)
    crowd = objects.get("crowd", objects.get("is_crowd", [False] * len(boxes)))
    places = objects.get("place") or [row] * len(boxes)
    height, width = size
    if form == "coco":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    elif form == "tfds":
        boxes = boxes[:, [1, 0, 3, 2]] * np.array([width, height, width, height])
    for box, where in zip(boxes, places, strict=True):
        _check_box(box, size, where)
    labels = [_class_id(one, names, where) for one, where in zip(classes, places, strict=True)]
    limit = np.array([width, height, width, height])
    return Boxes(np.clip(boxes, 0, limit), np.array(labels, np.int32), np.array(crowd, bool))


def _check_box(box: np.ndarray, size: tuple[int, int], where: str) -> None:
    """Raise a UserError if a box has no area, or is partly outside its image."""
    left, top, right, bottom = box
    height, width = size
    values = f"({', '.join(f'{number:g}' for number in box)})"
    if not np.isfinite(box).all() or right <= left or bottom <= top:
        raise UserError(
            f"{where}: the box {values} has no area.",
            "Its right has to exceed its left, and its bottom its top.",
        )
    # Some tools round a pixel beyond the edge.
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise UserError(
            f"{where}: the box {values} is partly outside its image of {width} x {height} pixels.",
            "Give boxes in the image's pixels: left, top, right, bottom (see task.box_format).",
        )


def _class_id(label: Any, names: Sequence[str], where: str) -> int:
    try:
        return class_id(label, "label", names)
    except BadValue as bad:
        hint = bad.hint or did_you_mean(str(label), names)
        raise UserError(f"{where} {bad.problem}.", hint) from None
