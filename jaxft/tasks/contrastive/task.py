"""Contrastive learning of images and texts: embeddings in one space, compared within a batch.

All other examples of the batch, over all devices and micro-batches, are negatives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.metrics.retrieval import retrieval_scores
from jaxft.models.tower.tower import Compute
from jaxft.tasks.contrastive.nearest_pairs import nearest_pairs
from jaxft.tasks.contrastive.section import ContrastiveSection as Section
from jaxft.tasks.parts.card import Card
from jaxft.tasks.parts.comparison import Comparison
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Params, Sum
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import DecodedExamples, ImageTextTask, check_images, open_image
from jaxft.tasks.parts.labels import column_of, read_rows, text_in
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.padded_texts import pad_texts, padded_length

HIDDEN = -1e9  # added to the score of padding
DIRECTIONS = ("text_to_image", "image_to_text")
RECALLS = ("recall_at_10", *(f"{d}_recall_at_{k}" for d in DIRECTIONS for k in (1, 5, 10)))


@dataclass(frozen=True)
class Pairs(DecodedExamples):
    """Images and their texts; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the token ids of each text.
        length: the padded length of texts.
        pad_id: the padding token.
        masked: whether the model takes an attention mask.
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
        hashes = [self.images_fingerprint, fingerprint(self.tokens)]
        parts = [*hashes, self.length, self.pad_id, self.masked]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        none = np.zeros(0, np.int32)
        texts = [self.tokens[int(n)]["input_ids"] if n >= 0 else none for n in index[:, 0]]
        return {
            **pad_texts(texts, self.length, self.pad_id, self.masked),
            **row_marks(index),
            **self.pixel_values(index),
        }


class BoundContrastive(BoundTask["Contrastive", Pairs]):
    """`Contrastive` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        text_in(self.task.text_column)(row)
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> Pairs:
        image, text = self.task.columns
        check_images(source, image)
        fixed = self.tools.model.config.fixed_length
        tokens = self.tools.encoded_once(self._encode, source, kind="texts", columns=(text,))
        texts = list(column_of(source, text))
        numbers = {one: number for number, one in enumerate(dict.fromkeys(texts))}
        return Pairs(
            source,
            image,
            self.tools.images,
            tokens,
            length=fixed or padded_length(int(tokens.lengths.max()), self.tools),
            pad_id=self.tools.tokenizer.pad_id,
            masked=fixed is None,
            same=np.array([numbers[one] for one in texts]),
        )

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every row's text; the metadata are counts."""
        column = self.task.text_column
        texts = read_rows(source, (column,), text_in(column))
        encoded = self.tools.tokenizer.encode(texts, max_length=self.tools.max_length)
        return [{"input_ids": ids} for ids in encoded.ids], {"counts": encoded.counts}

    def comparison(self, compute: Compute) -> Comparison:
        def outputs(params: Params, representations: Outputs) -> Outputs:
            return self.tools.model.apply(params, representations, None, compute)

        return Comparison(("image_embeds", "text_embeds"), outputs)

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed loss of a batch, whose other examples are the negatives, and weight.

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
            losses = sum(_softmax_loss(s, weights, hardness) for s in (of_images, of_images.T)) / 2
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
        return nearest_pairs(source, self.task.columns, outcomes, examples.same)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError(
            "This run compares images with texts, and predicts nothing of a single input.",
            'Search with it: jaxft search RUN "words" --images FOLDER.',
        )


def _softmax_loss(scores: jax.Array, weights: jax.Array, hardness: float) -> jax.Array:
    """Compute the cross-entropy of each row's diagonal among real columns: `[R, R], [R] -> [R]`.

    With `hardness`, the negatives of a row have weights `exp(hardness x score)`, 1 on average.
    """
    scores = scores + jnp.where(weights > 0, 0.0, HIDDEN)
    if hardness:
        own = jnp.eye(len(scores), dtype=bool)
        negatives = jnp.where(own, HIDDEN, scores) * hardness
        count = jnp.maximum(weights.sum() - 1.0, 1.0)
        bonus = negatives - jax.nn.logsumexp(negatives, axis=1, keepdims=True) + jnp.log(count)
        scores = scores + jnp.where(own, 0.0, bonus)
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(len(scores)))


class Contrastive(ImageTextTask):
    """Contrastive learning of images and texts."""

    section: Section

    bound = BoundContrastive
    card = Card("zero-shot-image-classification", "AutoModel")
    metrics = loss_and(*RECALLS)
    primary = "recall_at_10"
    view = "retrieval"
    searches = "images"


make = Contrastive
