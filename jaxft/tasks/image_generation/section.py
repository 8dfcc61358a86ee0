"""The `task` section of kind `image_generation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.fields import TaskSection, fixed


class ImageGenerationSection(TaskSection):
    """Images drawn pixel by pixel, each pixel a colour out of the checkpoint's list."""

    kind: Literal["image_generation"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    label: str | None = fixed(
        None, "column that holds the class an image is drawn by; null draws without"
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "classes in order of id; null takes those of the data"
    )
    samples: int = fixed(
        16,
        "images drawn at each evaluation, and held-out ones completed from their upper half",
        ge=0,
    )
    features: str | None = fixed(
        None,
        "checkpoint of a ViT, in whose features the Frechet distance between the images drawn and "
        "as many held-out ones is taken; null takes none",
    )
    feature_size: int | None = fixed(
        None,
        "height and width of the images there; null is that checkpoint's own",
        unit="pixels",
        ge=1,
    )

    @model_validator(mode="after")
    def _fits(self) -> ImageGenerationSection:
        if self.labels is not None and self.label is None:
            raise ValueError("labels are the classes of a column: name it in label")
        if self.features is not None and self.samples < 2:
            raise ValueError("features compare images that are drawn: samples is 2 or more")
        if self.features is None and self.feature_size is not None:
            raise ValueError("feature_size is of features: name a checkpoint there")
        return self
