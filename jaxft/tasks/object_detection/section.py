"""The `task` section of kind `object_detection`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, fixed


class ObjectDetectionSection(TaskSection):
    """Boxes around things in an image, and what they are."""

    kind: Literal["object_detection"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    objects: str = fixed("objects", "column that holds what is in it: bbox and label, a list each")
    labels: Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "classes in order of id; null takes those of the data"
    )
    box_format: Literal["pascal_voc", "coco", "tfds"] = fixed(
        "pascal_voc",
        "what a box is told by: left, top, right, bottom in pixels (also those of boxes: and "
        "coco: files); left, top, width, height; or top, left, bottom, right as shares",
    )
    match: Literal["box", "place"] = fixed(
        "box",
        "which detection is to find a thing: by the boxes that they find, each thing one (DETR's "
        "matching); or by place, all that look where it is, for detection tokens that a plain "
        "ViT was given",
    )
    tile: int | None = fixed(
        None,
        "height of the pieces that pictures are cut into; null takes each whole",
        unit="pixels",
        ge=1,
    )
    overlap: float = fixed(0.25, "share of a piece that the next one has too", ge=0, lt=1)
    merge: float = fixed(
        0.5,
        "overlap (intersection over union) from which two boxes of one class are one, where "
        "pieces of one picture, or several detections by place, found them",
        gt=0,
        le=1,
    )
