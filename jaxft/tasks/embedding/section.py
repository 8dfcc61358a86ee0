"""The `task` section of kind `embedding`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config.fields import TaskSection, fixed

Dimension = Annotated[int, Field(ge=1)]
LossName = Literal["multiple_negatives", "triplet", "cosine", "cosent", "margin_mse", "distill_kl"]
OF_SCORES = ("cosine", "cosent")
OF_TEACHER = ("margin_mse", "distill_kl")


class EmbeddingSection(TaskSection):
    """Text embeddings: vectors of texts, similar for texts that belong together."""

    kind: Literal["embedding"] = fixed(..., "the kind of task")
    anchor: str = fixed("anchor", "column that holds the anchor text, such as a query")
    positive: str = fixed("positive", "column that holds a text that belongs to it")
    negative: str | Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "column that holds a similar text that does not belong to it, or several columns"
    )
    score: str | None = fixed(
        None,
        "column that holds the similarity of the two texts; null makes the other rows of a batch "
        "negatives",
    )
    score_range: Annotated[list[float], Field(min_length=2, max_length=2)] = fixed(
        [0.0, 1.0], "the lowest and the highest score"
    )
    teacher_scores: Annotated[list[str], Field(min_length=2)] | None = fixed(
        None,
        "columns that hold a cross-encoder's scores of the anchor with the positive and with each "
        "negative, in this order, which the cosines over task.temperature learn",
    )
    loss: LossName | None = fixed(
        None,
        "of pairs: multiple_negatives (all other texts of a batch are negatives; the default) or "
        "triplet (only the row's own); of scored pairs: cosine (the squared error of the cosine; "
        "the default) or cosent (the order of the cosines); with teacher_scores: margin_mse (their "
        "differences; the default) or distill_kl (their softmax)",
    )
    margin: float = fixed(
        0.2, "by how much the cosine of a positive exceeds that of a negative (triplet)", gt=0
    )
    pooling: Literal["mean", "cls", "last", "max", "weighted_mean"] | None = fixed(
        None,
        "how the states of a text's tokens become its vector: their mean, the first or the last "
        "one, their maximum, or a mean whose weights rise; null takes the checkpoint's own "
        "(modules.json), or the mean where it has none",
    )
    prompts: dict[Literal["query", "document"], str] | None = fixed(
        None,
        "text put in front of an anchor (query) and of the other texts (document); of scored "
        "pairs, query is for both; null takes the checkpoint's own "
        "(config_sentence_transformers.json), {} puts nothing",
    )
    temperature: float = fixed(
        0.05,
        "divisor of the cosines (multiple_negatives, cosent, margin_mse, distill_kl)",
        gt=0,
    )
    matryoshka_dims: Annotated[list[Dimension], Field(min_length=1)] | None = fixed(
        None,
        "numbers of leading dimensions at each of which the loss is computed, and the scores of "
        "an evaluation too; null is all dimensions",
    )
    matryoshka_weights: list[Annotated[float, Field(gt=0)]] | None = fixed(
        None, "the weight of the loss at each of matryoshka_dims; null is 1 for each"
    )
    truncate_dim: Dimension | None = fixed(
        None,
        "leading dimensions that vectors have in evaluation, search, predictions and the export; "
        "null is all",
    )

    @property
    def negatives(self) -> tuple[str, ...]:
        """The columns of negatives."""
        if self.negative is None:
            return ()
        return (self.negative,) if isinstance(self.negative, str) else tuple(self.negative)

    @property
    def objective(self) -> LossName:
        """The loss, as chosen or by default."""
        if self.loss is None and self.teacher_scores is not None:
            return "margin_mse"
        return self.loss or ("multiple_negatives" if self.score is None else "cosine")

    @model_validator(mode="after")
    def _fits(self) -> EmbeddingSection:
        if self.score is not None and self.negative is not None:
            raise ValueError(
                "score is the similarity of two texts, so that it does not combine with negative"
            )
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError("score_range has the lower score first")
        return self

    @model_validator(mode="after")
    def _loss_fits(self) -> EmbeddingSection:
        if (self.objective in OF_SCORES) != (self.score is not None):
            needs = "needs task.score" if self.score is None else "does not combine with task.score"
            raise ValueError(f"the loss {self.objective} {needs}")
        if (self.objective in OF_TEACHER) != (self.teacher_scores is not None):
            needs = "needs" if self.teacher_scores is None else "does not combine with"
            raise ValueError(f"the loss {self.objective} {needs} task.teacher_scores")
        scored = len(self.teacher_scores or ())
        if scored and scored != 1 + len(self.negatives):
            raise ValueError(
                f"teacher_scores has {scored} columns, and a row has {1 + len(self.negatives)} "
                "texts beside the anchor: positive and negative"
            )
        if self.objective == "triplet" and self.negative is None:
            raise ValueError("the loss triplet needs task.negative, a column of negatives")
        return self

    @model_validator(mode="after")
    def _dimensions_fit(self) -> EmbeddingSection:
        dims, weights = self.matryoshka_dims or [], self.matryoshka_weights
        if len(set(dims)) < len(dims):
            raise ValueError("matryoshka_dims has a number twice")
        if weights is not None and len(weights) != len(dims):
            raise ValueError("matryoshka_weights needs one weight for each of matryoshka_dims")
        return self
