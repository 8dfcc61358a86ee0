"""The `task` section of kind `distillation`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import fixed
from jaxft.tasks.parts.classes.section import ClassesSection, check_target


class DistillationSection(ClassesSection):
    """One label for a text, learned from the labels and from a teacher's probabilities."""

    kind: Literal["distillation"] = fixed(..., "the kind of task")
    teacher: str = fixed(
        ...,
        "checkpoint of a classifier with the same classes: a folder such as a run's export, a hub "
        "id, or package:module/path; it does not train",
    )
    temperature: float = fixed(
        2.0, "what the logits of both models are divided by where they are compared", gt=0
    )
    alpha: float = fixed(
        0.5,
        "weight of the divergence from the teacher in the loss; the labels' is one minus it",
        ge=0,
        le=1,
    )
    text: str = fixed("text", "column that holds the text")
    text_pair: str | None = fixed(None, "column that holds the second text")
    template: str | None = fixed(
        None,
        "a row as text, in place of a text column: words around columns in braces, such as "
        "'{age} years old, owes {debt:.0f}'",
    )

    @model_validator(mode="after")
    def _fits(self) -> DistillationSection:
        check_target(self)
        if self.problem != "single_label":
            raise ValueError("distillation is for a single label an example")
        if self.template is not None and (self.text, self.text_pair) != ("text", None):
            raise ValueError("a template is the text: it stands in place of text and text_pair")
        return self
