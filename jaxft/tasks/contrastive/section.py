"""The `task` section of kind `contrastive`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import fixed
from jaxft.tasks.parts.sections import ImageTextSection


class ContrastiveSection(ImageTextSection):
    """Contrastive learning of images and texts."""

    kind: Literal["contrastive"] = fixed(..., "the kind of task")
    loss: Literal["softmax", "sigmoid"] = fixed(
        "softmax", "over each row of scores (CLIP), or over each score (SigLIP)"
    )
    hard_negatives: float = fixed(
        0.0,
        "how much more the loss weights negatives with high scores; 0 weights all equally",
        ge=0,
    )

    @model_validator(mode="after")
    def _fits(self) -> ContrastiveSection:
        if self.hard_negatives and self.loss == "sigmoid":
            raise ValueError(
                "hard_negatives weights the negatives of a softmax: set loss to softmax"
            )
        return self
