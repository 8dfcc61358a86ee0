"""The `task` section of kind `semantic_segmentation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.augment import Share
from jaxft.config.fields import Section, TaskSection, fixed


class MaskAugmentSection(Section):
    """Random changes of an image and its mask alike, new in each epoch."""

    crop: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = fixed(
        None,
        "smallest and largest fraction of the area of a random crop, which is resized and so "
        "scaled; [0.25, 1] is usual",
    )
    flip: Share = fixed(0.0, "probability of a horizontal flip; 0.5 is usual")
    color: Share = fixed(
        0.0,
        "most that brightness, contrast and saturation change, each by a factor from 1 - color to "
        "1 + color; of the image alone; 0.4 is usual",
    )

    @model_validator(mode="after")
    def _does_something(self) -> MaskAugmentSection:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError("crop must be [smallest, largest], with fractions above 0")
        if self.crop is None and not (self.flip or self.color):
            raise ValueError("it does nothing: set crop, flip or color")
        return self


class SemanticSegmentationSection(TaskSection):
    """Semantic segmentation: a class for each pixel of an image."""

    kind: Literal["semantic_segmentation"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    mask: str = fixed(
        "mask", "column that holds its mask, an image of class ids with one channel, or the path"
    )
    labels: Annotated[list[str], Field(min_length=1, max_length=255)] | None = fixed(
        None, "classes in order of id; null takes those that the data names"
    )
    ignore: Annotated[int, Field(ge=0, le=255)] | None = fixed(
        255, "id of pixels that are neither learned nor scored; null for none"
    )
    reduce_labels: bool = fixed(
        False,
        "whether id 0 is ignored and each other id is one less, as a SegformerImageProcessor's "
        "do_reduce_labels does for ADE20K",
    )
    tile: int | None = fixed(
        None,
        "height of the pieces that images are cut into; null resizes whole images",
        unit="pixels",
        ge=1,
    )
    overlap: float = fixed(0.25, "share of a piece that overlaps the next one", ge=0, lt=1)
    augment: MaskAugmentSection | None = fixed(
        None, "random augmentation of images and masks, sampled anew in each epoch"
    )
