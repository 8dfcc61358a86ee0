"""The `task` section of kind `reranking`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import TaskSection, fixed


class RerankingSection(TaskSection):
    """Reranking by a cross-encoder: one score for a query and a passage, read together."""

    kind: Literal["reranking"] = fixed(..., "the kind of task")
    query: str = fixed("query", "column that holds the query")
    passage: str = fixed("passage", "column that holds a passage, one of the query's candidates")
    label: str | None = fixed(
        None,
        "column that holds the relevance of the passage: 0 or 1, or a grade with loss: softmax; "
        "null for 'label', and with loss: mse for none",
    )
    score: str | None = fixed(
        None, "column that holds the score of the pair by another cross-encoder, with loss: mse"
    )
    positive: str | None = fixed(
        None,
        "column that holds the relevant passage, or a list of them, in place of passage and label: "
        "a row is a query with its candidates",
    )
    negatives: str | None = fixed(
        None, "column that holds the other candidates of such a row: a list of passages, or one"
    )
    loss: Literal["binary_cross_entropy", "mse", "softmax"] = fixed(
        "binary_cross_entropy",
        "of each pair by its label; of each pair by the score of another cross-encoder; or the "
        "cross-entropy of the softmax over a query's candidates (list-wise)",
    )
    candidates: int = fixed(
        8,
        "loss: softmax: the most candidates of a query in a training step, the most relevant ones "
        "first and then the others in the order of the rows",
        ge=2,
    )

    @model_validator(mode="after")
    def _fits(self) -> RerankingSection:
        if (self.loss == "mse") != (self.score is not None):
            raise ValueError("loss: mse and score belong together: set both or neither")
        if (self.positive is None) != (self.negatives is None):
            raise ValueError("positive and negatives belong together: set both or neither")
        if self.positive is not None and (self.label, self.score) != (None, None):
            raise ValueError("positive and negatives replace label and score: remove them")
        return self
