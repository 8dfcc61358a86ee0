"""Config keys that several tasks share; without jax, like every section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jaxft.config.fields import TaskSection, fixed
from jaxft.tasks.parts.classes.section import ClassesSection, check_target


class ImageTextSection(TaskSection):
    """The columns of images with a text each."""

    image: str = fixed("image", "column that holds the image, or the path to its file")
    text: str = fixed("text", "column that holds the text")


class GeneratedImagesSection(TaskSection):
    """The images that a task learns to generate, their classes, and the score of its samples."""

    image: str = fixed("image", "column that holds the image, or the path to its file")
    label: str | None = fixed(
        None, "column that holds the class of an image; null generates without one"
    )
    labels: Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "classes in order of id; null takes those of the data"
    )
    samples: int = fixed(16, "images sampled at each evaluation", ge=0)
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
    def _samples_fit(self) -> GeneratedImagesSection:
        if self.labels is not None and self.label is None:
            raise ValueError("labels needs label, the column of the classes")
        if self.features is not None and self.samples < 2:
            raise ValueError("features compares sampled images: set samples to 2 or more")
        if self.features is None and self.feature_size is not None:
            raise ValueError("feature_size needs features, the checkpoint that it is for")
        return self


class TextClassesSection(ClassesSection):
    """The columns of classified texts."""

    text: str = fixed("text", "column that holds the text")
    text_pair: str | None = fixed(None, "column that holds the second text")
    template: str | None = fixed(
        None,
        "the text of a row, in place of a text column, with columns in braces, such as "
        "'{age} years old, owes {debt:.0f}'",
    )

    @model_validator(mode="after")
    def _columns_fit(self) -> TextClassesSection:
        check_target(self)
        if self.template is not None and (self.text, self.text_pair) != ("text", None):
            raise ValueError("template replaces text and text_pair: remove them")
        return self
