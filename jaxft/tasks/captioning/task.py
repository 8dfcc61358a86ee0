"""A text for an image: an encoder reads the image, a decoder learns its caption.

What is scored beside the loss is what the model writes by itself for every image of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.metrics.translation import translation_scores
from jaxft.tasks.captioning.section import CaptioningSection as Section
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Card,
    Outcomes,
    Task,
)
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import (
    DecodedExamples,
    check_images,
    images_fingerprint,
    open_image,
    picture,
    pixel_values,
)
from jaxft.tasks.parts.labels import read_rows, text_of
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.parts.written_texts import (
    BoundWriting,
    Writing,
    encode_targets,
    target_batch,
    texts_of,
    writing_of,
)

PICTURES = 24  # first images that are kept with their picture, as many as a report shows
METRICS = {"loss": LOWER, **dict.fromkeys(("accuracy", "chrf", "exact_match"), HIGHER)}


def make(section: Section) -> Captioning:
    """The task as the config's `task` section describes it."""
    return Captioning(section)


@dataclass(frozen=True)
class Captions(DecodedExamples):
    """Images, decoded when they are batched, and their captions; see `contract.Examples`.

    Args:
        tokens: each caption's token ids, its end included.
        writing: how the model writes.
        wanted: `[examples]` the captions' texts.
    """

    tokens: Ragged | InMemory
    writing: Writing
    wanted: Sequence[str]

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def fingerprint(self) -> str:
        images = images_fingerprint(self.source, self.column, self.processor)
        return hashlib.sha256(json.dumps([images, fingerprint(self.tokens)]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.source)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        numbers = index[:, 0].tolist()
        targets = [None if n < 0 else self.tokens[n]["target"] for n in numbers]
        batch = {
            **target_batch(targets, self.tokens.meta["longest"], self.writing),
            **row_marks(index),
        }
        if self.decoded:
            batch["pixel_values"] = pixel_values(self.source, self.column, self.processor, index)
        return batch


@dataclass(frozen=True)
class Captioning(Task):
    """A text for an image: an encoder reads the image, a decoder learns its caption."""

    section: Section

    kind = "captioning"
    head = "captioning"
    card = Card("image-to-text", "AutoModelForImageTextToText")
    view = "texts"
    metrics = METRICS
    primary = "chrf"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.image, self.section.text)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return (self.section.text,)

    @property
    def plain_text_column(self) -> str:
        return self.section.text

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundCaptioning:
        return BoundCaptioning(self, tools, label_names)


class BoundCaptioning(BoundWriting[Captioning, Captions]):
    """`Captioning` on a model."""

    def check_row(self, source: Source, index: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its caption, or an image that does not decode."""
        self._text(row)
        open_image(source, index, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> Captions:
        texts, writing = read_rows(source, self.task.columns, self._text), writing_of(self.tools)
        check_images(source, self.task.section.image)
        tokens = self.tools.once(
            partial(self._encode, source, texts, writing),
            kind="captions",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            written=[writing.start, writing.end, writing.positions],
            task=self.task.section.model_dump(),
        )
        return Captions(source, self.task.section.image, self.tools.images, tokens, writing, texts)

    def _text(self, row: Mapping[str, Any]) -> str:
        return text_of(row[self.task.section.text], self.task.section.text)

    def _encode(
        self, source: Source, texts: Sequence[str], writing: Writing
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every caption's tokens; of the whole, counts and the longest."""
        targets, counts = encode_targets(source, texts, self.task.section.text, writing)
        told = {"counts": counts, "longest": max(map(len, targets))}
        return [{"target": ids} for ids in targets], told

    def summarise(self, outcomes: Outcomes, examples: Captions) -> dict[str, float]:
        texts = texts_of(outcomes["written"], examples.writing.tokenizer)
        scores = translation_scores(texts, examples.wanted)
        return {name: scores[name] for name in ("chrf", "exact_match")}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Captions
    ) -> Iterator[dict[str, Any]]:
        """Each image and its caption, what the model wrote, and the loss of a token."""
        texts = texts_of(outcomes["written"], examples.writing.tokenizer)
        losses = outcomes["loss"] / outcomes["scored"]
        rows = source.each([self.task.section.image])
        for (number, row), target, text, loss in zip(
            rows, examples.wanted, texts, losses, strict=True
        ):
            value = row[self.task.section.image]
            file = {"file": value} if isinstance(value, str) else {}
            said = {"target": target, "written": text, "loss": float(loss)}
            shown = number < PICTURES
            seen = {"image": picture(open_image(source, number, value))} if shown else {}
            yield file | said | seen

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError("This run writes texts for images, and has no class to give one.")
