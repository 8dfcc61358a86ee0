"""The `task` section of kind `embedding`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.fields import TaskSection, fixed


class EmbeddingSection(TaskSection):
    """Texts as vectors: those of two texts that belong together are alike."""

    kind: Literal["embedding"] = fixed(..., "the kind of task")
    anchor: str = fixed("anchor", "column that holds what is asked")
    positive: str = fixed("positive", "column that holds what belongs to it")
    negative: str | None = fixed(None, "column that holds what is nearly right and is not")
    score: str | None = fixed(
        None,
        "column that says how alike the two texts are; null makes every other row of a batch a "
        "wrong answer",
    )
    score_range: Annotated[list[float], Field(min_length=2, max_length=2)] = fixed(
        [0.0, 1.0], "the lowest and the highest score"
    )
    temperature: float = fixed(0.05, "the cosines of pairs are divided by it", gt=0)

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingSection:
        if self.score is not None and self.negative is not None:
            raise ValueError("score says how alike two texts are: it takes no negative")
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError("score_range goes from a lower to a higher score")
        return self
