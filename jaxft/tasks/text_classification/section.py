"""The `task` section of kind `text_classification`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import fixed
from jaxft.tasks.parts.sections import TextClassesSection


class TextClassificationSection(TextClassesSection):
    """One label, several, or a number for a text, a pair of texts, or a row of a table."""

    kind: Literal["text_classification"] = fixed(..., "the kind of task")
    r_drop: float | None = fixed(
        None,
        "R-Drop: weight in the loss of the divergence between two dropouts of a text; 1 to 5 are "
        "usual",
        gt=0,
    )

    @model_validator(mode="after")
    def _fits(self) -> TextClassificationSection:
        if self.r_drop is not None and self.problem != "single_label":
            raise ValueError("r_drop needs problem: single_label")
        return self
