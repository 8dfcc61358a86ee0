"""The `task` section of kind `embedding`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.fields import TaskSection, fixed


class EmbeddingSection(TaskSection):
    """Text embeddings: vectors of texts, similar for texts that belong together."""

    kind: Literal["embedding"] = fixed(..., "the kind of task")
    anchor: str = fixed("anchor", "column that holds the anchor text, such as a query")
    positive: str = fixed("positive", "column that holds a text that belongs to it")
    negative: str | None = fixed(
        None, "column that holds a similar text that does not belong to it"
    )
    score: str | None = fixed(
        None,
        "column that holds the similarity of the two texts; null makes the other rows of a batch "
        "negatives",
    )
    score_range: Annotated[list[float], Field(min_length=2, max_length=2)] = fixed(
        [0.0, 1.0], "the lowest and the highest score"
    )
    pooling: Literal["mean", "cls", "last", "max", "weighted_mean"] | None = fixed(
        None,
        "how the states of a text's tokens become its vector: their mean, the first or the last "
        "one, their maximum, or a mean whose weights rise; null takes the checkpoint's own "
        "(modules.json), or the mean where it has none",
    )
    temperature: float = fixed(0.05, "divisor of the cosines of pairs", gt=0)

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingSection:
        if self.score is not None and self.negative is not None:
            raise ValueError(
                "score is the similarity of two texts, so that it does not combine with negative"
            )
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError("score_range has the lower score first")
        return self
