"""Contrastive learning of images and texts: embeddings in one space, compared within a batch.

All other examples of the batch, over all devices and micro-batches, are negatives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.cache import ExampleArrays, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.retrieval import retrieval_scores
from jaxft.models.tower.tower import Compute
from jaxft.tasks.contrastive.losses import pair_losses
from jaxft.tasks.contrastive.nearest_pairs import nearest_pairs
from jaxft.tasks.contrastive.numbers import numbers_of
from jaxft.tasks.contrastive.section import ContrastiveSection as Section
from jaxft.tasks.parts.card import Card
from jaxft.tasks.parts.comparison import Comparison
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Params, Sum
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import DecodedExamples, ImageTextTask, check_images, open_image
from jaxft.tasks.parts.labels import read_rows, text_in
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.padded_texts import pad_texts, padded_length

EMBEDDINGS = ("image_embeds", "text_embeds")
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
        text: the column of the text.
    """

    tokens: ExampleArrays
    length: int
    pad_id: int
    masked: bool
    text: str

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @cached_property
    def numbers(self) -> np.ndarray:
        """Return `[examples, 2]` numbers of the images and of the texts, equal ones the same."""
        return numbers_of(self.source, (self.column, self.text))

    @property
    def fingerprint(self) -> str:
        hashes = [self.images_fingerprint, fingerprint(self.tokens)]
        parts = [*hashes, self.length, self.pad_id, self.masked]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        none, taken = np.zeros(0, np.int32), self.tokens.take(index)
        texts = [taken[n]["input_ids"] if n >= 0 else none for n in index[:, 0].tolist()]
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
        tokens = self.tools.encoded_by_row(self._encode, source, kind="texts", columns=(text,))
        return Pairs(
            source,
            image,
            self.tools.images,
            tokens,
            length=fixed or padded_length(int(tokens.lengths.max()), self.tools),
            pad_id=self.tools.tokenizer.pad_id,
            masked=fixed is None,
            text=text,
        )

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every row's text; the metadata are counts."""
        column = self.task.text_column
        texts = read_rows(source, (column,), text_in(column))
        encoded = self.tools.tokenizer.encode(texts, max_length=self.tools.max_length)
        return [{"input_ids": ids} for ids in encoded.ids], {"counts": encoded.counts}

    def represent(
        self, params: Params, outputs: Outputs, batch: Batch, compute: Compute
    ) -> Outputs:
        """Add the loss of each pair, whose negatives are the batch's other rows: `losses`, [R]."""
        section, weights = self.task.section, batch["weights"][:, 0]  # [R]
        return {**outputs, "losses": pair_losses(section, params, outputs, weights, compute.mesh)}

    def comparison(self, compute: Compute) -> Comparison:
        return Comparison(EMBEDDINGS, partial(self.represent, compute=compute))

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        weights = batch["weights"][:, 0]  # [R]
        return jnp.sum(outputs["losses"] * weights), jnp.sum(weights)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        shape = batch["weights"].shape
        return {
            name: outputs[f"{name}_embeds"].astype(jnp.float32).reshape(*shape, -1)  # [R, 1, D]
            for name in ("image", "text")
        }

    def summarise(self, outcomes: Outcomes, examples: Pairs) -> dict[str, float]:
        return retrieval_scores(outcomes["image"], outcomes["text"], examples.numbers)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Pairs
    ) -> Iterator[dict[str, Any]]:
        return nearest_pairs(source, self.task.columns, outcomes, examples.numbers)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError(
            "This run compares images with texts, and predicts nothing of a single input.",
            'Search with it: jaxft search RUN "words" --images FOLDER.',
        )


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
