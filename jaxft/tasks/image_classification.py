"""One class for an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxft.config_tasks import ImageClassification as Section
from jaxft.data.image import ImageProcessor
from jaxft.data.sources import Source
from jaxft.tasks.classes import (
    METRICS,
    batch_labels,
    class_loss,
    class_metrics,
    class_outcomes,
    class_said,
    class_summary,
)
from jaxft.tasks.contract import Examples, Tools
from jaxft.tasks.images import (
    check_images,
    images_fingerprint,
    open_image,
    paths_from_input,
    picture,
    pixel_values,
)
from jaxft.tasks.labels import label_ids, label_names

PICTURES = 20  # worst mistakes that are kept with their picture, as many as a report shows


def make(section: Section) -> ImageClassification:
    """The task as the config's `task` section describes it."""
    return ImageClassification(section)


@dataclass(frozen=True)
class ImageExamples:
    """Images with a class each, decoded when they are batched; see `contract.Examples`.

    Attributes:
        decoded: whether batches bring the images.
    """

    source: Source
    column: str
    processor: ImageProcessor
    labels: np.ndarray | None
    counts: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    random: bool = False
    decoded: bool = True

    @property
    def lengths(self) -> np.ndarray:
        return np.ones(len(self), np.int64)

    @property
    def fingerprint(self) -> str:
        return images_fingerprint(self.source, self.column, self.processor)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.processor.size

    def __len__(self) -> int:
        return len(self.source)

    def without_images(self) -> ImageExamples:
        return replace(self, decoded=False)

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        del row_length
        batch = {
            "weights": (index >= 0).astype(np.float32),
            "example_ids": index.astype(np.int32),
        }
        if self.decoded:
            batch["pixel_values"] = pixel_values(self.source, self.column, self.processor, index)
        if self.labels is not None:
            batch["labels"] = batch_labels(self.labels, index)  # [R, S]
        return batch


@dataclass(frozen=True)
class ImageClassification:
    """See `jaxft.tasks.contract.Task`."""

    section: Section
    kind: str = "image_classification"
    primary: str = "accuracy"
    metric_names: tuple[str, ...] = METRICS
    packs: bool = False

    loss = staticmethod(class_loss)
    metrics = staticmethod(class_metrics)
    outcomes = staticmethod(class_outcomes)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.section.image, self.section.label)

    def label_names(self, source: Source) -> tuple[str, ...]:
        return label_names(source, self.section.label, self.section.labels)

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> ImageExamples:
        labels = None if names is None else label_ids(source, self.section.label, names)
        if labels is not None:  # what a person typed is decoded at once anyway
            check_images(source, self.section.image)
        return ImageExamples(source, self.section.image, tools.images, labels)

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Examples, names: Sequence[str]
    ) -> dict[str, float]:
        del names
        return class_summary(outcomes, examples.labels)

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Examples,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        shown = set(_worst(outcomes, examples.labels))
        for number in range(len(source)):
            value = source.rows([number], [self.section.image])[0][self.section.image]
            said = class_said(number, outcomes, examples.labels, names)
            file = {"file": value} if isinstance(value, str) else {}
            seen = {"image": picture(open_image(source, number, value))} if number in shown else {}
            yield file | said | seen

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.section.image: path} for path in paths_from_input(inputs))


def _worst(outcomes: Mapping[str, np.ndarray], labels: np.ndarray | None) -> list[int]:
    """The wrong examples with the highest loss."""
    if labels is None:
        return []
    wrong = np.flatnonzero(outcomes["probabilities"].argmax(axis=-1) != labels)
    return wrong[np.argsort(-outcomes["loss"][wrong], kind="stable")][:PICTURES].tolist()
