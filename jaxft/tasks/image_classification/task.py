"""Classes or a number for an image."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxft.data.image.augment import Augmentation
from jaxft.data.image.images import ImageProcessor
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.tasks.image_classification.section import ImageClassificationSection as Section
from jaxft.tasks.parts.classes.target import BoundTargetTask, TargetTask, make_target
from jaxft.tasks.parts.contract import Card, Outcomes
from jaxft.tasks.parts.examples import Examples, row_marks
from jaxft.tasks.parts.images import (
    augmented_values,
    check_images,
    images_fingerprint,
    inputs_of,
    open_image,
    paths_from_input,
    picture,
    pixel_values,
)
from jaxft.tasks.parts.labels import Labels
from jaxft.tasks.parts.tools import Tools

PICTURES = 20  # worst mistakes that are kept with their picture, as many as a report shows


def make(section: Section) -> ImageClassification:
    """The task as the config's `task` section describes it."""
    return ImageClassification(section, make_target(section))


@dataclass(frozen=True)
class ImageExamples(Examples):
    """Images with a label each, decoded when they are batched; see `contract.Examples`.

    Attributes:
        decoded: whether batches bring the images.
        augment: what is done to an image by chance; None where it is read as it is.
    """

    source: Source
    column: str
    processor: ImageProcessor
    labelled: Labels | None
    decoded: bool = True
    augment: Augmentation | None = None

    @property
    def random(self) -> bool:
        return self.augment is not None

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.labelled is None else self.labelled.values

    @property
    def fingerprint(self) -> str:
        return images_fingerprint(self.source, self.column, self.processor)

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        # Rows of colours are words, which a stem reads whatever its trunk has made of them.
        pixels = {"pixel_values": (3, *self.processor.size)}
        return pixels if self.processor.clusters is None else {}

    def __len__(self) -> int:
        return len(self.source)

    def without(self, inputs: Collection[str]) -> ImageExamples:
        bare = "pixel_values" in inputs and "pixel_values" in self.inputs
        return replace(self, decoded=self.decoded and not bare)

    def scored(self) -> ImageExamples:
        """The same images as they are."""
        return replace(self, augment=None)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length
        if self.augment is not None:
            return self._changed(self.augment, index, epoch_random)
        batch = row_marks(index)
        if self.decoded:
            values = pixel_values(self.source, self.column, self.processor, index)
            batch |= inputs_of(values, self.processor)
        return batch if self.labelled is None else batch | self.labelled.batch(index)

    def _changed(
        self, augment: Augmentation, index: np.ndarray, epoch_random: EpochRandom
    ) -> dict[str, np.ndarray]:
        """A batch of images changed by chance, and their labels."""
        how = (self.source, self.column, self.processor, augment, index, epoch_random)
        values, others, shares = augmented_values(*how)
        batch = replace(self, decoded=False, augment=None).collate(index, 1)
        if augment.mixes and self.labelled is not None:
            batch |= self.labelled.mixed(index, others, shares)
        return batch | inputs_of(values, self.processor)


@dataclass(frozen=True)
class ImageClassification(TargetTask):
    """Classes or a number for an image."""

    section: Section
    kind = "image_classification"
    head = "image_classification"
    card = Card("image-classification", "AutoModelForImageClassification")
    shows_attention = True

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The column that holds the image."""
        return (self.section.image,)

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundImageClassification:
        return BoundImageClassification(self, tools, label_names)


@dataclass(frozen=True)
class BoundImageClassification(BoundTargetTask[ImageClassification, ImageExamples]):
    """See `jaxft.tasks.parts.contract.BoundTask`."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its label, or an image that does not decode."""
        self.target.parse(row, self.label_names)
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> ImageExamples:
        labels = self.target.read(source, self.label_names) if labelled else None
        if labelled:  # what a person typed is decoded at once anyway
            check_images(source, self.task.section.image)
        section = self.task.section.augment if labelled else None
        how = None if section is None else Augmentation(**dict(section))
        return ImageExamples(
            source, self.task.section.image, self.tools.images, labels, augment=how
        )

    def pixels(self, source: Source, examples: ImageExamples, number: int) -> np.ndarray:
        ((_, row),) = source.each([examples.column], [number])
        image = open_image(source, number, row[examples.column])
        return examples.processor.fit(image)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: ImageExamples
    ) -> Iterator[dict[str, Any]]:
        shown = set(self._worst(outcomes, examples.labels))
        for number in range(len(source)):
            value = source.rows([number], [self.task.section.image])[0][self.task.section.image]
            said = self.target.said(number, outcomes, examples.labels, self.label_names)
            file = {"file": value} if isinstance(value, str) else {}
            seen = {"image": picture(open_image(source, number, value))} if number in shown else {}
            yield file | said | seen

    def _worst(self, outcomes: Outcomes, labels: np.ndarray | None) -> list[int]:
        """The wrong examples with the highest loss."""
        if labels is None:
            return []
        wrong = np.flatnonzero(self.target.wrong(outcomes, labels))
        return wrong[np.argsort(-outcomes["loss"][wrong], kind="stable")][:PICTURES].tolist()

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.image: path} for path in paths_from_input(inputs))
