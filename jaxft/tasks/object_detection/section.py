"""The `task` section of kind `object_detection`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.augment import AugmentBoxesSection
from jaxft.config.fields import TaskSection, fixed


class ObjectDetectionSection(TaskSection):
    """Object detection: boxes around objects in an image, and their classes."""

    kind: Literal["object_detection"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    objects: str = fixed("objects", "column that holds its objects: bbox and label, a list each")
    labels: Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "classes in order of id; null takes those of the data"
    )
    box_format: Literal["pascal_voc", "coco", "tfds"] = fixed(
        "pascal_voc",
        "format of a box, of which boxes: and coco: files have their own: left, top, right, bottom "
        "in pixels; left, top, width, height; or top, left, bottom, right as shares of the image",
    )
    match: Literal["box", "place"] = fixed(
        "box",
        "assignment of objects to detections: each object to one, by predicted boxes (DETR's "
        "matching); or to all whose position is on it, for detection tokens added to a plain ViT",
    )
    tile: int | None = fixed(
        None,
        "height of the pieces that images are cut into; null reads whole images",
        unit="pixels",
        ge=1,
    )
    overlap: float = fixed(0.25, "share of a piece that overlaps the next one", ge=0, lt=1)
    merge: float = fixed(
        0.5,
        "intersection over union from which two boxes of one class count as one, in the union of "
        "an image's pieces, or of detections matched by place",
        gt=0,
        le=1,
    )
    augment: AugmentBoxesSection | None = fixed(
        None, "random augmentation of images and their boxes, sampled anew in each epoch"
    )
