"""Text embeddings: vectors of texts, similar for texts that belong together.

All other examples of the batch, over all devices, are negatives. Under `train.accumulate` only
those of the micro-batch are, so that a step differs from one on the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.metrics.regression import regression_scores
from jaxft.metrics.retrieval import pair_scores, ranking_loss, wrong_before
from jaxft.models.model import Model
from jaxft.tasks.embedding.pooling import MEAN, pool, read_pooling
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.text_tuples import TextTuples, numbered
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Facts, Outcomes, Outputs, Sum, Task
from jaxft.tasks.parts.labels import BadValue, column_of, number_of, read_rows, text_of
from jaxft.tasks.parts.metric import Metric, loss_and

# The same on the states of one text, `[T, D]`, in PyTorch.
POOLED = {
    "mean": "states.mean(0)",
    "cls": "states[0]",
    "last": "states[-1]",
    "max": "states.max(0).values",
    "weighted_mean": "states.flip(0).cumsum(0).sum(0)  # the sum of number times state",
}
SHOWN = 3  # nearest texts written for each text
RANKING = ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")
CORRELATION = ("spearman", "pearson")
HIDDEN = -1e9  # the score of texts that are not negatives


class BoundEmbedding(BoundTask["Embedding", TextTuples]):
    """`Embedding` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
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
                f"{source.spec}: a single pair has no negatives, which are the texts of others.",
                "Check the slice and data.where.",
            )
        encode = partial(self._encode, columns)
        tokens = self.tools.encoded_once(encode, source, kind="texts of rows", columns=columns)
        written = list(zip(*(column_of(source, column) for column in columns), strict=True))
        return TextTuples(tokens, numbered(written), scores)

    def _encode(
        self, columns: Sequence[str], source: Source
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode each row's texts, row by row; the metadata are counts and truncated tokens."""
        rows = read_rows(source, columns, lambda row: [text_of(row[one], one) for one in columns])
        texts = [text for row in rows for text in row]
        encoded = self.tools.tokenizer.encode(texts, max_length=self.tools.max_length)
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        examples = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        return examples, {"counts": encoded.counts, "cut": encoded.cut}

    def _score(self, row: Mapping[str, Any]) -> float:
        """Read the similarity of a row's two texts, scaled to 0 to 1."""
        column = self.task.section.score
        if column is None:
            return 0.0
        low, high = self.task.section.score_range
        value = number_of(row[column], column)
        if not low <= value <= high:
            raise BadValue(
                f"has {value:g} in {column}, which is not from {low:g} to {high:g}",
                "Set task.score_range to the lowest and the highest score.",
            )
        return (value - low) / (high - low)

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed loss of a batch, whose other examples are the negatives, and weight.

        Source: of pairs Henderson et al. (2017), https://arxiv.org/abs/1705.00652, section 4.4,
        with the cosine over a temperature; of scores the squared error of the cosine, Reimers and
        Gurevych (2019), https://arxiv.org/abs/1908.10084, section 3.
        """
        vectors, weights = self._vectors(outputs, batch), batch["weights"].reshape(-1)
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
        return {"vectors": self._vectors(outputs, batch)}

    def summarise(self, outcomes: Outcomes, examples: TextTuples) -> dict[str, float]:
        """Compute scores over the whole split; its other texts are the negatives of the loss."""
        vectors, numbers = outcomes["vectors"], examples.numbers
        if examples.scores is not None:
            alike = np.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
            scores = regression_scores(alike, examples.scores)
            return {name: scores[name] for name in ("spearman", "pearson") if name in scores}
        items = np.concatenate([vectors[:, k] for k in range(1, vectors.shape[1])])
        owners = np.concatenate([numbers[:, k] for k in range(1, numbers.shape[1])])
        loss = ranking_loss(vectors[:, 0], items, numbers, owners, self.task.section.temperature)
        return {"loss": loss, **pair_scores(vectors[:, 0], items, numbers, owners)}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: TextTuples
    ) -> Iterator[dict[str, Any]]:
        """Yield each text's vector; for pairs, each text's positive and its nearest texts."""
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

    def _vectors(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Pool each text to a unit vector: `[R, S, K, D]` float32."""
        stream = outputs["last_hidden_state"].astype(jnp.float32)  # [R, T, D]
        rows, segments, count = batch["text_numbers"].shape  # [R, S, K]
        pooled = pool(stream, batch["segment_ids"], segments * count, self.task.pooling)
        unit = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
        return unit.reshape(rows, segments, count, -1)

    def point_labels(self, examples: TextTuples) -> list[tuple[str, ...]] | None:
        return [self.task.texts] * len(examples)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.anchor: text} for text in inputs)


def _ranking(
    vectors: jax.Array, numbers: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """Compute the cross-entropy of each example's positive among the batch's texts: `[N]`.

    Args:
        vectors: `[N, K, D]` of anchor, positive and perhaps a hard negative.
        numbers: `[N, K]`; equal texts have equal numbers.
        weights: `[N]`, 1 for an example.
        temperature: the divisor of the cosines.
    """
    count = len(vectors)
    items = jnp.swapaxes(vectors[:, 1:], 0, 1).reshape(-1, vectors.shape[-1])  # [(K - 1) N, D]
    owners = jnp.swapaxes(numbers[:, 1:], 0, 1).reshape(-1)
    scores = jnp.matmul(vectors[:, 0], items.T, precision="highest") / temperature
    own = jnp.arange(len(items))[None, :] == jnp.arange(count)[:, None]
    # The positives of equal anchors are no negatives.
    alike = (numbers[:, 0][None, :] == numbers[:, :1]) & (weights > 0)[None, :]  # [N, N]
    theirs = owners[None, :] == numbers[:, 1:2]  # [N, (K - 1) N]
    right = alike.astype(jnp.float32) @ theirs.astype(jnp.float32) > 0
    absent = jnp.tile(weights == 0, vectors.shape[1] - 1)[None, :]
    scores = jnp.where((right | absent) & ~own, HIDDEN, scores)
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(count))


@dataclass(frozen=True)
class Embedding(Task):
    """Text embeddings: vectors of texts, similar for texts that belong together.

    Args:
        section: the config's `task` section.
        pooling: how a text's states become its vector.
        assumed: whether neither the config nor the checkpoint says how.
    """

    section: Section
    pooling: str = MEAN
    assumed: bool = False

    head = None
    bound = BoundEmbedding
    view = "pairs"
    packs = True
    searches = "texts"

    @property
    def card(self) -> Card:
        pooled = f"vector = {POOLED[self.pooling]}"
        lines = (READ_TEXT, APPLY, "states = outputs.last_hidden_state[0]", pooled)
        return Card("feature-extraction", "AutoModel", (*lines, "vector = vector / vector.norm()"))

    @property
    def facts(self) -> Facts:
        return {"pooling": self.pooling}

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.assumed:
            return ()
        return (
            "The checkpoint has no modules.json, which says how it pools: a text's vector is the "
            f"{self.pooling} of its tokens' states. task.pooling changes that.",
        )

    def fit(self, labels: np.ndarray | None, model: Model) -> Facts:
        """Return how the checkpoint pools.

        Raises:
            UserError: `task.pooling` contradicts the checkpoint.
        """
        del labels
        own, asked = read_pooling(model.source.folder), self.section.pooling
        if None not in (own, asked) and own != asked:
            raise UserError(
                f"task.pooling is {asked}, and the checkpoint's modules.json says {own}.",
                "Remove task.pooling; vectors of another pooling are not those it was trained for.",
            )
        chosen = own or asked
        return {"pooling": chosen or MEAN, "assumed": chosen is None}

    def fitted(self, facts: Facts) -> Embedding:
        pooling, assumed = str(facts.get("pooling", MEAN)), bool(facts.get("assumed", False))
        return replace(self, pooling=pooling, assumed=assumed)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return loss_and(*(RANKING if self.section.score is None else CORRELATION))

    @property
    def primary(self) -> str:
        return "recall_at_10" if self.section.score is None else "spearman"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of texts: anchor, positive, and negative if there is one."""
        own = self.section
        return tuple(c for c in (own.anchor, own.positive, own.negative) if c is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.texts if self.section.score is None else (*self.texts, self.section.score)


make = Embedding
