"""The `task` section of kind `distillation`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import fixed
from jaxft.tasks.parts.sections import TextClassesSection


class DistillationSection(TextClassesSection):
    """Text classification with one label, learned from labels and a teacher's probabilities."""

    kind: Literal["distillation"] = fixed(..., "the kind of task")
    teacher: str = fixed(
        ...,
        "checkpoint of a classifier with the same classes: a folder such as a run's export, a hub "
        "id, or package:module/path; it does not train",
    )
    temperature: float = fixed(2.0, "divisor of the logits of both models in the divergence", gt=0)
    alpha: float = fixed(
        0.5,
        "weight of the divergence from the teacher in the loss; the labels' is one minus it",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _fits(self) -> DistillationSection:
        if self.problem != "single_label":
            raise ValueError("distillation needs problem: single_label")
        return self
