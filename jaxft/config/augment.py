"""The `task.augment` sections: random changes of images during training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jaxft.config.fields import Section, fixed

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentSection(Section):
    """Random changes of an image, new in each epoch."""

    crop: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = fixed(
        None,
        "smallest and largest fraction of the area of a random crop, which is resized; [0.08, 1] "
        "is usual from scratch, [0.5, 1] from a checkpoint",
    )
    flip: Share = fixed(0.0, "probability of a horizontal flip; 0.5 is usual")
    changes: int = fixed(
        0,
        "number of RandAugment operations on color and shape, in sequence; 2 is usual",
        ge=0,
        le=8,
    )
    magnitude: int = fixed(9, "strength of these operations", ge=0, le=30)
    mixup: Share = fixed(
        0.0,
        "mixup: blend the image and its label with another; alpha of the Beta distribution that "
        "the weight is sampled from; 0.2 is usual",
    )
    cutmix: Share = fixed(
        0.0,
        "CutMix: paste a piece of another image, and mix the labels; alpha likewise; 1 is usual; "
        "with mixup too, each is used half of the time",
    )

    @model_validator(mode="after")
    def _does_something(self) -> AugmentSection:
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError("crop must be [smallest, largest], with fractions above 0")
        if self.crop is None and not (self.flip or self.changes or self.mixes):
            raise ValueError("it does nothing: set crop, flip, changes, mixup or cutmix")
        return self

    @property
    def mixes(self) -> bool:
        """Return whether an example is a mixture of two."""
        return bool(self.mixup or self.cutmix)


Times = Annotated[float, Field(ge=0.1, le=10)]


class AugmentBoxesSection(Section):
    """Random changes of an image with boxes, new in each epoch."""

    scale: Annotated[list[Times], Field(min_length=2, max_length=2)] | None = fixed(
        None,
        "how many times larger objects become, at least and at most: a smaller or larger window of "
        "the image is read; [0.5, 2] is usual, [1, 2] makes crops alone",
    )
    flip: Share = fixed(0.0, "probability of a horizontal flip; 0.5 is usual")
    flip_vertical: Share = fixed(0.0, "probability of a vertical flip, for photos from above")
    mosaic: Share = fixed(0.0, "probability of an input put together of four images")

    @model_validator(mode="after")
    def _does_something(self) -> AugmentBoxesSection:
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise ValueError("scale must be [smallest, largest]")
        if self.scale is None and not (self.flip or self.flip_vertical or self.mosaic):
            raise ValueError("it does nothing: set scale, flip, flip_vertical or mosaic")
        return self
