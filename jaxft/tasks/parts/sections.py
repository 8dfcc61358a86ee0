"""Config keys that several tasks share; without jax, like every section."""

from __future__ import annotations

from pydantic import model_validator

from jaxft.config.fields import TaskSection, fixed
from jaxft.tasks.parts.classes.section import ClassesSection, check_target


class ImageTextSection(TaskSection):
    """The columns of images with a text each."""

    image: str = fixed("image", "column that holds the image, or the path to its file")
    text: str = fixed("text", "column that holds the text")


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
