"""The `task` section of kind `image_classification`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.augment import AugmentSection
from jaxft.config.fields import fixed
from jaxft.tasks.parts.classes.section import ClassesSection, check_target


class ImageClassificationSection(ClassesSection):
    """One label, several, or a number for an image."""

    kind: Literal["image_classification"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    augment: AugmentSection | None = fixed(
        None, "random augmentation of images, sampled anew in each epoch"
    )

    @model_validator(mode="after")
    def _fits(self) -> ImageClassificationSection:
        check_target(self)
        if self.augment is not None and self.augment.mixes and self.class_weights is not None:
            raise ValueError("class_weights does not combine with mixed images: remove one of them")
        return self
