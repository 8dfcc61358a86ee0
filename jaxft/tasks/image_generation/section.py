"""The `task` section of kind `image_generation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.fields import TaskSection, fixed


class ImageGenerationSection(TaskSection):
    """Image generation: pixel by pixel, each pixel one of the checkpoint's colors."""

    kind: Literal["image_generation"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    label: str | None = fixed(
        None, "column that holds the class of an image; null generates unconditionally"
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "classes in order of id; null takes those of the data"
    )
    samples: int = fixed(
        16,
        "images sampled at each evaluation, and held-out ones completed from their upper half",
        ge=0,
    )
    features: str | None = fixed(
        None,
        "checkpoint of a ViT, whose features give the Frechet distance between the sampled images "
        "and as many held-out ones; null computes none",
    )
    feature_size: int | None = fixed(
        None,
        "height and width of the images for that ViT; null is its own",
        unit="pixels",
        ge=1,
    )

    @model_validator(mode="after")
    def _fits(self) -> ImageGenerationSection:
        if self.labels is not None and self.label is None:
            raise ValueError("labels needs label, the column of the classes")
        if self.features is not None and self.samples < 2:
            raise ValueError("features compares sampled images: set samples to 2 or more")
        if self.features is None and self.feature_size is not None:
            raise ValueError("feature_size needs features, the checkpoint that it is for")
        return self
