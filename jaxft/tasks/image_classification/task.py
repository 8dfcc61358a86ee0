"""Image classification: classes or a number for an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxft.data.image.augment import Augmentation
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.tasks.image_classification.section import ImageClassificationSection as Section
from jaxft.tasks.parts.card import APPLY, READ_IMAGE, Card
from jaxft.tasks.parts.classes.target import BoundTargetTask, TargetTask, make_target
from jaxft.tasks.parts.contract import Outcomes
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import (
    DecodedExamples,
    augmented_values,
    check_images,
    inputs_of,
    open_image,
    paths_from_input,
    picture,
    pixel_values,
)
from jaxft.tasks.parts.labels import Labels

PICTURES = 20  # worst mistakes stored with their image, as many as a report shows


def make(section: Section) -> ImageClassification:
    """Make the task as the config's `task` section describes it."""
    return ImageClassification(section, make_target(section))


@dataclass(frozen=True)
class ImageExamples(DecodedExamples):
    """Images with labels; see `jaxft.tasks.parts.examples.Examples`.

    Attributes:
        labelled: the labels; None for inputs.
        augment: the random augmentation; None without.
    """

    labelled: Labels | None
    augment: Augmentation | None = None

    @property
    def random(self) -> bool:
        return self.augment is not None

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.labelled is None else self.labelled.values

    @property
    def fingerprint(self) -> str:
        return self.images_fingerprint

    def scored(self) -> ImageExamples:
        """Return the images without augmentation."""
        return replace(self, augment=None)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length
        if self.augment is not None:
            return self._augmented(self.augment, index, epoch_random)
        batch = row_marks(index)
        if self.decoded:
            values = pixel_values(self.source, self.column, self.processor, index)
            batch |= inputs_of(values, self.processor)
        return batch if self.labelled is None else batch | self.labelled.batch(index)

    def _augmented(
        self, augment: Augmentation, index: np.ndarray, epoch_random: EpochRandom
    ) -> dict[str, np.ndarray]:
        """Collate a batch of augmented images and their labels."""
        values, others, shares = augmented_values(
            self.source, self.column, self.processor, augment, index, epoch_random
        )
        batch = replace(self, decoded=False, augment=None).collate(index, 1)
        if augment.mixes and self.labelled is not None:
            batch |= self.labelled.mixed(index, others, shares)
        return batch | inputs_of(values, self.processor)


class BoundImageClassification(BoundTargetTask["ImageClassification", ImageExamples]):
    """`ImageClassification` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        self.target.parse(row, self.label_names)
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> ImageExamples:
        labels = self.target.read(source, self.label_names) if labelled else None
        if labelled:  # inputs are decoded at once anyway
            check_images(source, self.task.section.image)
        section = self.task.section.augment if labelled else None
        augment = None if section is None else Augmentation(**dict(section))
        return ImageExamples(source, self.task.section.image, self.tools.images, labels, augment)

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
            line = {"file": value} if isinstance(value, str) else {}
            line |= self.target.prediction(number, outcomes, examples.labels, self.label_names)
            if number in shown:
                line["image"] = picture(open_image(source, number, value))
            yield line

    def _worst(self, outcomes: Outcomes, labels: np.ndarray | None) -> list[int]:
        """Return the wrong examples with the highest loss."""
        if labels is None:
            return []
        wrong = np.flatnonzero(self.target.wrong(outcomes, labels))
        return wrong[np.argsort(-outcomes["loss"][wrong], kind="stable")][:PICTURES].tolist()

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.image: path} for path in paths_from_input(inputs))


@dataclass(frozen=True)
class ImageClassification(TargetTask):
    """Image classification: classes or a number for an image."""

    section: Section
    bound = BoundImageClassification
    card = Card(
        "image-classification",
        "AutoModelForImageClassification",
        (READ_IMAGE, APPLY, "print(outputs.logits)"),
    )
    shows_attention = True

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The column that holds the image."""
        return (self.section.image,)
