"""The `task` section of kind `contrastive`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import TaskSection, fixed


class ContrastiveSection(TaskSection):
    """Which text belongs to which image, among all of a batch."""

    kind: Literal["contrastive"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    text: str = fixed("text", "column that holds the text")
    loss: Literal["softmax", "sigmoid"] = fixed(
        "softmax", "over each row of scores (CLIP), or of each score alone (SigLIP)"
    )
    hard_negatives: float = fixed(
        0.0,
        "how much more a wrong answer of the batch counts that scores high; 0 counts all alike",
        ge=0,
    )

    @model_validator(mode="after")
    def _fits(self) -> ContrastiveSection:
        if self.hard_negatives and self.loss == "sigmoid":
            raise ValueError("hard_negatives weigh what a softmax compares: loss is softmax")
        return self
