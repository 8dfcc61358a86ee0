"""Image captioning: an encoder reads the image, a decoder learns its caption.

The scores beside the loss are of captions that the model generates for every image of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxft.data.cache import ExampleArrays, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.metrics.captions import caption_scores
from jaxft.tasks.captioning.section import CaptioningSection as Section
from jaxft.tasks.parts.card import GENERATE, READ_IMAGE, WRITE, Card
from jaxft.tasks.parts.contract import Outcomes
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import (
    DecodedExamples,
    ImageTextTask,
    check_images,
    open_image,
    picture,
)
from jaxft.tasks.parts.labels import read_rows, text_in
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.written_texts import (
    BoundWriting,
    Writing,
    encode_targets,
    target_batch,
)

PICTURES = 24  # first images stored with their predictions, as many as a report shows


@dataclass(frozen=True)
class Captions(DecodedExamples):
    """Images and their captions; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the token ids of each caption, with its end token.
        writing: the decoder's tokenizer and special tokens.
        wanted: `[examples]` the captions' texts.
    """

    tokens: ExampleArrays
    writing: Writing
    wanted: Sequence[str]

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def fingerprint(self) -> str:
        hashes = [self.images_fingerprint, fingerprint(self.tokens)]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        taken = self.tokens.take(index)
        targets = [taken[n]["target"] if n >= 0 else None for n in index[:, 0].tolist()]
        return {
            **target_batch(targets, self.tokens.meta["longest"]["target"], self.writing),
            **row_marks(index),
            **self.pixel_values(index),
        }


class BoundCaptioning(BoundWriting["Captioning", Captions]):
    """`Captioning` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        text_in(self.task.text_column)(row)
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> Captions:
        image, text = self.task.columns
        texts = read_rows(source, self.task.columns, text_in(text))
        writing = self.writing
        check_images(source, image)
        tokens = self.tools.encoded_by_row(
            partial(self._encode, writing),
            source,
            kind="captions by row",
            written=writing.key,
            task=self.task.section.model_dump(),
        )
        return Captions(source, image, self.tools.images, tokens, writing, texts)

    def _encode(
        self, writing: Writing, source: Source
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every caption; the metadata are counts and the longest length."""
        column = self.task.section.text
        texts = read_rows(source, self.task.columns, text_in(column))
        targets, counts = encode_targets(source, texts, column, writing)
        about = {"counts": counts, "longest": {"target": max(map(len, targets))}}
        return [{"target": ids} for ids in targets], about

    def summarise(self, outcomes: Outcomes, examples: Captions) -> dict[str, float]:
        return caption_scores(self.texts(outcomes), examples.wanted)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Captions
    ) -> Iterator[dict[str, Any]]:
        column = self.task.section.image
        captions = zip(examples.wanted, self.texts_and_losses(outcomes), strict=True)
        for (number, row), (target, generated) in zip(source.each([column]), captions, strict=True):
            value = row[column]
            line = {"file": value} if isinstance(value, str) else {}
            line |= {"target": target, **generated}
            if number < PICTURES:
                line["image"] = picture(open_image(source, number, value))
            yield line


class Captioning(ImageTextTask):
    """Image captioning: a decoder learns the text of an image."""

    section: Section

    bound = BoundCaptioning
    card = Card("image-to-text", "AutoModelForImageTextToText", (READ_IMAGE, GENERATE, WRITE))
    metrics = loss_and("accuracy", "chrf", "cider", "exact_match")
    primary = "chrf"
    view = "texts"


make = Captioning
