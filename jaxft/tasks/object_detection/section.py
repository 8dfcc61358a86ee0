"""The `task` section of kind `object_detection`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, key


class ObjectDetectionSection(TaskSection):
    """Boxes around things in an image, and what they are."""

    kind: Literal["object_detection"] = key(..., "the kind of task", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    objects: str = key(
        "objects", "column that holds what is in it: bbox and label, a list each", resume="fixed"
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = key(
        None, "classes in order of id; null takes those of the data", resume="fixed"
    )
    box_format: Literal["pascal_voc", "coco", "tfds"] = key(
        "pascal_voc",
        "what a box is told by: left, top, right, bottom in pixels (also those of boxes: and "
        "coco: files); left, top, width, height; or top, left, bottom, right as shares",
        resume="fixed",
    )
    match: Literal["box", "place"] = key(
        "box",
        "which detection is to find a thing: by the boxes that they find, each thing one (DETR's "
        "matching); or by place, all that look where it is, for detection tokens that a plain "
        "ViT was given",
        resume="fixed",
    )
    tile: int | None = key(
        None,
        "height of the pieces that pictures are cut into; null takes each whole",
        resume="fixed",
        unit="pixels",
        ge=1,
    )
    overlap: float = key(
        0.25, "share of a piece that the next one has too", resume="fixed", ge=0, lt=1
    )
    merge: float = key(
        0.5,
        "overlap (intersection over union) from which two boxes of one class are one, where "
        "pieces of one picture, or several detections by place, found them",
        resume="fixed",
        gt=0,
        le=1,
    )
