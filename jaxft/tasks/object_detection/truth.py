"""The true boxes of an image, read from a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.sources.reader import OBJECT_CLASSES, CornerObjects
from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.labels import BadValue, class_id

CROWD = ("crowd", "is_crowd")
FORM = "Objects are {bbox: [[left, top, right, bottom], ...], label: [name, ...]}, of one length."


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
            (top, left, bottom, right as shares of the image); not of objects that have their own.
        row: the row's name in messages, for objects without a location of their own.

    Raises:
        UserError: as `read_objects`; a box is outside the image or has no area, or a label is no
            class.
    """
    boxes, classes, crowd, places = read_objects(objects, row)
    height, width = size
    if isinstance(objects, CornerObjects):
        form = "pascal_voc"
    if form == "coco":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    elif form == "tfds":
        boxes = boxes[:, [1, 0, 3, 2]] * np.array([width, height, width, height])
    for box, where in zip(boxes, places, strict=True):
        _check_box(box, size, where)
    labels = [_class_id(one, names, where) for one, where in zip(classes, places, strict=True)]
    limit = np.array([width, height, width, height])
    return Boxes(np.clip(boxes, 0, limit), np.array(labels, np.int32), np.array(crowd, bool))


def read_objects(objects: Any, row: str) -> tuple[np.ndarray, list, list, list]:
    """Read a row's objects: a table with a list for each of their fields, or a list of tables.

    Args:
        objects: the row's cell; None of an image without objects.
        row: the row's name in messages.

    Returns:
        Of each object its box (`[N, 4]`), label, whether it is a crowd, and name in messages.

    Raises:
        UserError: it is no table, lists have other lengths, or a box is no four numbers.
    """
    if isinstance(objects, list | tuple) and all(isinstance(one, Mapping) for one in objects):
        fields = {name: None for one in objects for name in one}
        objects = {name: [one.get(name) for one in objects] for name in fields}
    if not isinstance(objects, Mapping | None):
        raise UserError(f"{row}: its objects are no table.", FORM)
    boxes = _listed(objects, ("bbox",), row)
    count = len(boxes or ())
    classes = _listed(objects, OBJECT_CLASSES, row)
    crowd = _listed(objects, CROWD, row) or [False] * count
    places = _listed(objects, ("place",), row) or [row] * count
    for name, values in (("label", classes), ("crowd", crowd)):
        if len(values or ()) != count:
            raise UserError(f"{row}: {count} boxes have {len(values or ())} of {name}.", FORM)
    for box in boxes or ():
        if not _are_numbers(box):
            raise UserError(f"{row}: a box is {str(box)[:40]}, and no four numbers.", FORM)
    return np.array(boxes or [], float).reshape(-1, 4), classes or [], crowd, places


def _listed(objects: Mapping[str, Any] | None, names: Sequence[str], row: str) -> list | None:
    """Return the first of some fields that objects have, as a list."""
    fields = objects or {}
    values = next((fields[name] for name in names if fields.get(name) is not None), None)
    if values is None:
        return None
    if not isinstance(values, list | tuple | np.ndarray):
        raise UserError(f"{row}: the objects' {names[0]} is no list.", FORM)
    return list(values)


def _are_numbers(box: Any) -> bool:
    """Return whether a box is four numbers."""
    try:
        return np.array(box, float).shape == (4,)
    except (TypeError, ValueError):
        return False


def _check_box(box: np.ndarray, size: tuple[int, int], where: str) -> None:
    """Raise a UserError if a box has no area, or is partly outside its image."""
    left, top, right, bottom = box
    height, width = size
    values = f"({', '.join(f'{number:g}' for number in box)})"
    if not np.isfinite(box).all() or right <= left or bottom <= top:
        raise UserError(
            f"{where}: the box {values} has no area.",
            "Its right has to exceed its left, and its bottom its top (see task.box_format).",
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
