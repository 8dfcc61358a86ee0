"""The `task` section of kind `text_classification`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import fixed
from jaxft.tasks.parts.classes.section import ClassesSection, check_target


class TextClassificationSection(ClassesSection):
    """One label, several, or a number for a text, for a pair of texts, or for a table's row."""

    kind: Literal["text_classification"] = fixed(..., "the kind of task")
    text: str = fixed("text", "column that holds the text")
    text_pair: str | None = fixed(None, "column that holds the second text")
    template: str | None = fixed(
        None,
        "a row as text, in place of a text column: words around columns in braces, such as "
        "'{age} years old, owes {debt:.0f}'",
    )
    r_drop: float | None = fixed(
        None,
        "R-Drop: what it counts in the loss that two dropouts of a text say different things; 1 to "
        "5 are usual",
        gt=0,
    )

    @model_validator(mode="after")
    def _fits(self) -> TextClassificationSection:
        check_target(self)
        if self.r_drop is not None and self.problem != "single_label":
            raise ValueError("r_drop is for a single label an example")
        if self.template is not None and (self.text, self.text_pair) != ("text", None):
            raise ValueError("a template is the text: it stands in place of text and text_pair")
        return self
