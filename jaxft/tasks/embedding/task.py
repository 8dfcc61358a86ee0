"""Texts as vectors: of two texts that belong together the vectors are alike.

Every other example of the batch is a wrong answer, over all devices. Under `train.accumulate` it
is every other of the micro-batch: a larger `data.batch_size` on more devices is not the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.open import Source
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.metrics.regression import regression_scores
from jaxft.metrics.retrieval import pair_scores, ranking_loss, wrong_before
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.text_tuples import TextTuples, numbered
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Batch,
    BoundTask,
    Card,
    Metric,
    Outcomes,
    Outputs,
    Sum,
    Task,
)
from jaxft.tasks.parts.labels import BadValue, column_of, number_of, read_rows, text_of
from jaxft.tasks.parts.token_examples import of_segments
from jaxft.tasks.parts.tools import Tools

SHOWN = 3  # texts that are written beside a text
RANKING = ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")
CORRELATION = ("spearman", "pearson")
HIDDEN = -1e9  # added to the score of what is no wrong answer


def make(section: Section) -> Embedding:
    """The task as the config's `task` section describes it."""
    return Embedding(section)


@dataclass(frozen=True)
class Embedding(Task):
    """Texts as vectors: of two texts that belong together the vectors are alike."""

    section: Section

    kind = "embedding"
    head = None
    card = Card("feature-extraction", "AutoModel")
    view = "pairs"
    packs = True
    searches = "texts"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        own = RANKING if self.section.score is None else CORRELATION
        return {"loss": LOWER, **dict.fromkeys(own, HIGHER)}

    @property
    def primary(self) -> str:
        return "recall_at_10" if self.section.score is None else "spearman"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold texts: what is asked, what belongs to it, perhaps what does not."""
        own = self.section
        return tuple(c for c in (own.anchor, own.positive, own.negative) if c is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.texts if self.section.score is None else (*self.texts, self.section.score)

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundEmbedding:
        return BoundEmbedding(self, tools, label_names)


class BoundEmbedding(BoundTask[Embedding, TextTuples]):
    """`Embedding` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: a text that is none, or its score."""
        del source, number
        for column in self.task.texts:
            text_of(row[column], column)
        self._score(row)

    def examples(self, source: Source, *, labelled: bool = True) -> TextTuples:
        columns = self.task.texts if labelled else (self.task.section.anchor,)
        scores = None
        if labelled and self.task.section.score is not None:
            scores = np.array(read_rows(source, self.task.columns, self._score), np.float32)
        elif labelled and len(source) < 2:
            raise UserError(
                f"{source.spec}: there is one pair, and with no other no text is a wrong answer.",
                "Check the slice and data.where.",
            )
        tokens = self.tools.once(
            partial(self._encode, source, columns, self.tools.tokenizer, self.tools.max_length),
            kind="texts of rows",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            max_length=self.tools.max_length,
            columns=columns,
        )
        written = list(zip(*(column_of(source, column) for column in columns), strict=True))
        return TextTuples(tokens, numbered(written), scores)

    def _encode(
        self, source: Source, columns: Sequence[str], tokenizer: Tokenizer, length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """The tokens of each row's texts, row by row; of the whole, counts and cuts."""
        rows = read_rows(source, columns, lambda row: [text_of(row[one], one) for one in columns])
        encoded = tokenizer.encode([text for row in rows for text in row], max_length=length)
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        examples = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        return examples, {"counts": encoded.counts, "cut": encoded.cut}

    def _score(self, row: Mapping[str, Any]) -> float:
        """How alike a row's two texts are, from 0 to 1."""
        column = self.task.section.score
        if column is None:
            return 0.0
        low, high = self.task.section.score_range
        value = number_of(row[column], column)
        if not low <= value <= high:
            raise BadValue(
                f"has {value:g} in {column}, which is not from {low:g} to {high:g}",
                "task.score_range says from where to where scores go.",
            )
        return (value - low) / (high - low)

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """The loss of each example in its batch; padding is no wrong answer.

        Source: of pairs Henderson et al. (2017), https://arxiv.org/abs/1705.00652, section 4.4,
        with the cosine over a temperature; of scores the squared error of the cosine, Reimers and
        Gurevych (2019), https://arxiv.org/abs/1908.10084, section 3.
        """
        vectors, weights = _vectors(outputs, batch), batch["weights"].reshape(-1)
        count = vectors.shape[2]
        vectors = vectors.reshape(-1, count, vectors.shape[-1])  # [N, K, D]
        if self.task.section.score is not None:
            alike = jnp.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
            losses = (alike - batch["scores"].reshape(-1)) ** 2
        else:
            numbers = batch["text_numbers"].reshape(-1, count)
            losses = _ranking(vectors, numbers, weights, self.task.section.temperature)
        return jnp.sum(losses * weights), jnp.sum(weights)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        return {"vectors": _vectors(outputs, batch)}

    def summarise(self, outcomes: Outcomes, examples: TextTuples) -> dict[str, float]:
        """Scores over the whole split; the loss too, with every other text of it as wrong."""
        vectors, numbers = outcomes["vectors"], examples.numbers
        if examples.scores is not None:
            alike = np.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
            found = regression_scores(alike, examples.scores)
            return {name: found[name] for name in ("spearman", "pearson") if name in found}
        items = np.concatenate([vectors[:, k] for k in range(1, vectors.shape[1])])
        told = np.concatenate([numbers[:, k] for k in range(1, numbers.shape[1])])
        loss = ranking_loss(vectors[:, 0], items, numbers, told, self.task.section.temperature)
        return {"loss": loss, **pair_scores(vectors[:, 0], items, numbers, told)}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: TextTuples
    ) -> Iterator[dict[str, Any]]:
        """Each text's vector; of pairs what belongs to it, and what lies nearest."""
        vectors, anchors = outcomes["vectors"], list(column_of(source, self.task.section.anchor))
        if vectors.shape[1] == 1:
            for text, vector in zip(anchors, vectors[:, 0], strict=True):
                yield {"text": text, "vector": [round(float(value), 6) for value in vector]}
            return
        positives = list(column_of(source, self.task.section.positive))
        before = wrong_before(
            vectors[:, 0], vectors[:, 1], examples.numbers, examples.numbers[:, 1]
        )
        for number, (text, positive) in enumerate(zip(anchors, positives, strict=True)):
            alike = vectors[:, 1] @ vectors[number, 0]
            near = list(dict.fromkeys(positives[i] for i in np.argsort(-alike, kind="stable")))
            best = {
                one: float(max(alike[i] for i, p in enumerate(positives) if p == one))
                for one in near[:SHOWN]
            }
            yield {
                "text": text,
                "positive": positive,
                "similarity": round(float(alike[number]), 6),
                "before": int(before[number]),
                "found": [{"text": t, "similarity": round(s, 6)} for t, s in best.items()],
            }

    def point_labels(self, examples: TextTuples) -> list[tuple[str, ...]] | None:
        return [self.task.texts] * len(examples)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for text in inputs:
            yield {self.task.section.anchor: text}


def _vectors(outputs: Mapping[str, jax.Array], batch: Batch) -> jax.Array:
    """The mean of each text's positions, special tokens too, of length 1: [R, S, K, D] float32."""
    stream = outputs["last_hidden_state"].astype(jnp.float32)  # [R, T, D]
    rows, segments, count = batch["text_numbers"].shape  # [R, S, K]
    own = of_segments(batch["segment_ids"], segments * count)  # [R, S x K, T]
    means = jnp.einsum("rst,rtd->rsd", own.astype(jnp.float32), stream, precision="highest")
    # A segment without a text is all zeros, whose length has no slope: it is given one.
    there = own.any(-1, keepdims=True)
    means = jnp.where(there, means / jnp.maximum(own.sum(-1, keepdims=True), 1), 1.0)
    unit = means / jnp.linalg.norm(means, axis=-1, keepdims=True)
    return unit.reshape(rows, segments, count, -1)


def _ranking(
    vectors: jax.Array, numbers: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """Cross-entropy of each example's own positive among all the batch's texts: [N].

    Args:
        vectors: [N, K, D] of anchor, positive and perhaps a hard negative.
        numbers: [N, K]; equal texts have the same.
        weights: [N] 1 for an example.
        temperature: the cosines are divided by it.
    """
    count = len(vectors)
    items = jnp.swapaxes(vectors[:, 1:], 0, 1).reshape(-1, vectors.shape[-1])  # [(K - 1) N, D]
    told = jnp.swapaxes(numbers[:, 1:], 0, 1).reshape(-1)
    scores = jnp.matmul(vectors[:, 0], items.T, precision="highest") / temperature
    place = jnp.arange(len(items))
    own = place[None, :] == jnp.arange(count)[:, None]
    # A text is right too where some row has it as the positive of the same anchor.
    alike = (numbers[:, 0][None, :] == numbers[:, :1]) & (weights > 0)[None, :]  # [N, N]
    theirs = told[None, :] == numbers[:, 1:2]  # [N, (K - 1) N]
    right = alike.astype(jnp.float32) @ theirs.astype(jnp.float32) > 0
    absent = jnp.tile(weights == 0, vectors.shape[1] - 1)[None, :]
    scores = jnp.where((right | absent) & ~own, HIDDEN, scores)
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(count))
