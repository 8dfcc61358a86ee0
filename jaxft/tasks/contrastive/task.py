"""Which text belongs to which image: embeddings of both in one space, told apart in a batch.

Every other example of the batch is a wrong answer, over all devices. Under `train.accumulate` it
is every other of the micro-batch: a step is not the step of the whole batch then, and a larger
`data.batch_size` on more devices is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.metrics.retrieval import retrieval_scores
from jaxft.tasks.contrastive.found_pairs import found_pairs
from jaxft.tasks.contrastive.section import ContrastiveSection as Section
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Batch,
    BoundTask,
    Card,
    Outcomes,
    Outputs,
    Sum,
    Task,
)
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import (
    DecodedExamples,
    check_images,
    images_fingerprint,
    open_image,
    pixel_values,
)
from jaxft.tasks.parts.labels import column_of, read_rows, text_of
from jaxft.tasks.parts.padded_texts import pad_texts, padded_length
from jaxft.tasks.parts.tools import Tools

HIDDEN = -1e9  # added to the score of an example that is padding
RECALLS = (
    "recall_at_10",
    *(f"{way}_recall_at_{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
)
METRICS = {"loss": LOWER, **dict.fromkeys(RECALLS, HIGHER)}


def make(section: Section) -> Contrastive:
    """The task as the config's `task` section describes it."""
    return Contrastive(section)


@dataclass(frozen=True)
class Pairs(DecodedExamples):
    """Images, decoded when they are batched, and their texts; see `contract.Examples`.

    Args:
        tokens: each text's token ids.
        length: positions that a text is padded to.
        pad_id: the token that does so.
        masked: whether the model is told which tokens are padding.
        same: `[examples]`: equal texts have the same number.
    """

    tokens: Ragged | InMemory
    length: int
    pad_id: int
    masked: bool
    same: np.ndarray

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def fingerprint(self) -> str:
        images = images_fingerprint(self.source, self.column, self.processor)
        told = [images, fingerprint(self.tokens), self.length, self.pad_id, self.masked]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.source)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        none = np.zeros(0, np.int32)
        texts = [self.tokens[int(n)]["input_ids"] if n >= 0 else none for n in index[:, 0]]
        batch = {
            **pad_texts(texts, self.length, self.pad_id, self.masked),
            **row_marks(index),
        }
        if self.decoded:
            batch["pixel_values"] = pixel_values(self.source, self.column, self.processor, index)
        return batch


@dataclass(frozen=True)
class Contrastive(Task):
    """Which text belongs to which image: embeddings of both in one space, told apart in a batch."""

    section: Section

    kind = "contrastive"
    head = "contrastive"
    card = Card("zero-shot-image-classification", "AutoModel")
    view = "retrieval"
    metrics = METRICS
    primary = "recall_at_10"
    searches = "images"

    @property
    def columns(self) -> tuple[str, str]:
        return (self.section.image, self.section.text)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.section.text,)

    @property
    def plain_text_column(self) -> str:
        return self.section.text

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundContrastive:
        return BoundContrastive(self, tools, label_names)


class BoundContrastive(BoundTask[Contrastive, Pairs]):
    """`Contrastive` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its text, or an image that does not decode."""
        self._text(row)
        open_image(source, number, row[self.task.section.image])

    def _text(self, row: Mapping[str, Any]) -> str:
        return text_of(row[self.task.section.text], self.task.section.text)

    def examples(self, source: Source, *, labelled: bool = True) -> Pairs:
        check_images(source, self.task.section.image)
        fixed = self.tools.model.config.fixed_length
        tokens = self.tools.once(
            partial(self._encode, source, self.tools.tokenizer, self.tools.max_length),
            kind="texts",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            max_length=self.tools.max_length,
            columns=(self.task.section.text,),
        )
        texts = list(column_of(source, self.task.section.text))
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        return Pairs(
            source,
            self.task.section.image,
            self.tools.images,
            tokens,
            length=fixed or padded_length(int(tokens.lengths.max()), self.tools),
            pad_id=self.tools.tokenizer.pad_id,
            masked=fixed is None,
            same=np.array([numbers[text] for text in texts]),
        )

    def _encode(
        self, source: Source, tokenizer: Tokenizer, max_length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        texts = read_rows(source, (self.task.section.text,), self._text)
        encoded = tokenizer.encode(texts, max_length=max_length)
        return [{"input_ids": ids} for ids in encoded.ids], {"counts": encoded.counts}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """The loss of each example in its batch; padding is no wrong answer.

        Source: softmax: Radford et al. (2021), https://arxiv.org/abs/2103.00020, figure 3;
        sigmoid: Zhai et al. (2023), https://arxiv.org/abs/2303.15343, equation 2; hard negatives:
        Radenovic et al. (2023), https://arxiv.org/abs/2301.02280, section 3.3, with alpha 1.
        """
        of_images = outputs["logits_per_image"].astype(jnp.float32)  # [R, R]
        weights = batch["weights"][:, 0]  # [R]
        if self.task.section.loss == "sigmoid":
            signs = 2.0 * jnp.eye(len(weights)) - 1.0
            losses = -jax.nn.log_sigmoid(signs * of_images) @ weights
        else:
            hardness = self.task.section.hard_negatives
            ways = (_softmax_loss(way, weights, hardness) for way in (of_images, of_images.T))
            losses = sum(ways) / 2
        return jnp.sum(losses * weights), jnp.sum(weights)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        shape = batch["weights"].shape
        return {
            name: outputs[f"{name}_embeds"].astype(jnp.float32).reshape(*shape, -1)  # [R, 1, D]
            for name in ("image", "text")
        }

    def summarise(self, outcomes: Outcomes, examples: Pairs) -> dict[str, float]:
        return retrieval_scores(outcomes["image"], outcomes["text"], examples.same)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Pairs
    ) -> Iterator[dict[str, Any]]:
        """What each image and each of the first texts find: see `found_pairs`."""
        return found_pairs(source, self.task.columns, outcomes, examples.same)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError(
            "This run tells which texts belong to which images, and predicts nothing of one alone.",
            'Search with it: jaxft search RUN "words" --images FOLDER.',
        )


def _softmax_loss(scores: jax.Array, weights: jax.Array, hardness: float) -> jax.Array:
    """Cross-entropy of the diagonal among each row's true columns: [R, R], [R] -> [R].

    With a hardness the wrong answers of a row weigh `exp(hardness x score)`, 1 in the mean.
    """
    scores = scores + jnp.where(weights > 0, 0.0, HIDDEN)
    if hardness:
        own = jnp.eye(len(scores), dtype=bool)
        told = jnp.where(own, HIDDEN, scores) * hardness
        wrong = jnp.maximum(weights.sum() - 1.0, 1.0)
        heavier = told - jax.nn.logsumexp(told, axis=1, keepdims=True) + jnp.log(wrong)
        scores = scores + jnp.where(own, 0.0, heavier)
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(scores)))
