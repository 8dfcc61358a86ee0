"""Boxes around things in an image, and what they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxft.data.image.annotate import annotate
from jaxft.data.image.tiles import absolute, unlike
from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.metrics.boxes import box_scores
from jaxft.models.families.vit.yolos_from_vit import places
from jaxft.tasks.object_detection.boxes import PieceExamples, opened, read_boxes, read_examples
from jaxft.tasks.object_detection.detection_loss import detection_loss
from jaxft.tasks.object_detection.section import ObjectDetectionSection as Section
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
from jaxft.tasks.parts.images import check_images, open_image, paths_from_input, picture
from jaxft.tasks.parts.tools import Tools

SURE = 0.5  # the score from which a person is told of a box
PICTURE_SIDE = 640  # pixels of a picture in a report: boxes are small in it
PICTURES = 12  # that are kept with their boxes drawn
METRICS = {"loss": LOWER, **dict.fromkeys(("map", "map_50", "map_75"), HIGHER)}


def make(section: Section) -> ObjectDetection:
    """The task as the config's `task` section describes it."""
    return ObjectDetection(section)


@dataclass(frozen=True)
class ObjectDetection(Task):
    """Boxes around things in an image, and what they are."""

    section: Section

    kind = "object_detection"
    head = "object_detection"
    card = Card("object-detection", "AutoModelForObjectDetection")
    view = "boxes"
    metrics = METRICS
    primary = "map"

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The column that holds the image."""
        return (self.section.image,)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.input_columns

    @property
    def columns(self) -> tuple[str, str]:
        return (self.section.image, self.section.objects)

    def label_names(self, source: Source) -> tuple[str, ...]:
        """The config's classes, the data's own names, or the labels of the training rows."""
        named = self.section.labels or source.class_names(self.section.objects)
        if named:
            return tuple(named)
        column = self.section.objects
        rows = (source.rows([number], [column])[0][column] for number in range(len(source)))
        found = sorted({str(label) for row in rows for label in (row or {}).get("label", ())})
        if not found:
            raise UserError(f"{source.spec}: no picture has a box to learn from.")
        return tuple(found)

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundObjectDetection:
        return BoundObjectDetection(self, tools, label_names)


class BoundObjectDetection(BoundTask[ObjectDetection, PieceExamples]):
    """`ObjectDetection` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: a box, or an image that does not decode."""
        image = open_image(source, number, row[self.task.section.image])
        size = (image.height, image.width)
        objects, form = row[self.task.section.objects], self.task.section.box_format
        read_boxes(objects, self.label_names, size, form, source.place(number))

    def examples(self, source: Source, *, labelled: bool = True) -> PieceExamples:
        if labelled:  # what a person typed is decoded at once anyway
            check_images(source, self.task.section.image)
        config = self.tools.model.config
        count = config.fields["num_detection_tokens"]
        examples = read_examples(
            source,
            self.task.columns if labelled else (self.task.section.image, ""),
            self.label_names if labelled else None,
            self.tools.images,
            count,
            tile=self.task.section.tile,
            overlap=self.task.section.overlap,
            form=self.task.section.box_format,
        )
        if self.task.section.match != "place":
            return examples
        return replace(examples, places=places(count, *config.grid).astype(np.float32))

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return detection_loss(outputs, batch)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Of each detection token its box, likeliest class and that one's share: `[R, 1, Q, ...]`.

        The share of finding nothing is left out of the choice, as in DETR.
        """
        shares = jax.nn.softmax(outputs["logits"], axis=-1)[:, None, :, :-1]  # [R, 1, Q, C]
        boxes = outputs["pred_boxes"][:, None]
        return {"boxes": boxes, "scores": shares.max(-1), "classes": shares.argmax(-1)}

    def summarise(self, outcomes: Outcomes, examples: PieceExamples) -> dict[str, float]:
        if examples.truth is None:
            return {}
        gold = [
            {"boxes": one.corners, "labels": one.labels, "crowd": one.crowd}
            for one in examples.truth
        ]
        return box_scores(gold, self._found(outcomes, examples), self.label_names)

    def _found(self, outcomes: Outcomes, examples: PieceExamples) -> list[dict[str, np.ndarray]]:
        """What was found in each picture: of its pieces together, the best first."""
        found = []
        for number, size in enumerate(examples.sizes.tolist()):
            own = np.flatnonzero(examples.pieces[:, 0] == number)
            moved = [
                absolute(outcomes["boxes"][piece], examples.pieces[piece, 1:], tuple(size))
                for piece in own
            ]
            boxes = np.concatenate(moved)
            labels, scores = outcomes["classes"][own].ravel(), outcomes["scores"][own].ravel()
            if len(own) > 1 or self.task.section.match == "place":  # a thing may be found twice
                kept = unlike(boxes, labels, scores, self.task.section.merge)
            else:
                kept = np.argsort(-scores, kind="stable")
            found.append({"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]})
        return found

    def describe(
        self, source: Source, outcomes: Outcomes, examples: PieceExamples
    ) -> Iterator[dict[str, Any]]:
        for number, found in enumerate(self._found(outcomes, examples)):
            sure = found["scores"] >= SURE
            said = _said(found["boxes"][sure], found["labels"][sure], self.label_names)
            for one, score in zip(said, found["scores"][sure], strict=True):
                one["score"] = round(float(score), 4)
            value = source.rows([number], [self.task.section.image])[0][self.task.section.image]
            line = {"file": value} if isinstance(value, str) else {}
            if examples.truth is None:
                yield line | {"objects": said}
                continue
            truth = examples.truth[number]
            gold = _said(truth.corners, truth.labels, self.label_names)
            if number < PICTURES:
                image = opened(source, number, self.task.section.image)
                line["image"] = picture(annotate(image, gold, said), PICTURE_SIDE)
            yield line | {"gold": gold, "objects": said}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.image: path} for path in paths_from_input(inputs))


def _said(boxes: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as a person reads them: the class, and the corners in pixels."""
    return [
        {"label": names[int(label)], "box": [round(float(corner), 1) for corner in box]}
        for box, label in zip(boxes, labels, strict=True)
    ]
