"""Object detection: boxes around objects in an image, and their classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.image.annotate import annotate
from jaxft.data.image.augment_boxes import BoxAugmentation
from jaxft.data.image.files import whole_image_files
from jaxft.data.image.tiles import absolute, unlike
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.boxes import SIZES, box_scores
from jaxft.models.families.vit.yolos_from_vit import places
from jaxft.models.model import Model
from jaxft.tasks.object_detection.boxes import PieceExamples, opened, read_examples
from jaxft.tasks.object_detection.detection_loss import detection_loss
from jaxft.tasks.object_detection.query_loss import query_loss
from jaxft.tasks.object_detection.section import ObjectDetectionSection as Section
from jaxft.tasks.object_detection.truth import Boxes, read_boxes, read_objects
from jaxft.tasks.parts.arrays import Facts
from jaxft.tasks.parts.card import APPLY, READ_IMAGE, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Sum, Task
from jaxft.tasks.parts.images import check_images, open_image, paths_from_input, picture
from jaxft.tasks.parts.metric import loss_and
from jaxft.tasks.parts.tools import Tools

YOLOS = "YolosImageProcessor"  # a plain ViT's makes no boxes of its outputs
SURE = 0.5  # boxes of this score or more are in the predictions file
PICTURE_SIDE = 640  # pixels of an image in a report, large enough for small boxes
PICTURES = 12  # images stored with their annotated boxes


class BoundObjectDetection(BoundTask["ObjectDetection", PieceExamples]):
    """`ObjectDetection` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        image = open_image(source, number, row[self.task.section.image])
        size = (image.height, image.width)
        objects, form = row[self.task.section.objects], self.task.section.box_format
        read_boxes(objects, self.label_names, size, form, source.place(number))

    def examples(self, source: Source, *, labelled: bool = True) -> PieceExamples:
        if labelled:  # inputs are decoded at once anyway
            check_images(source, self.task.section.image)
        config = self.tools.model.config
        count, section = config.detections, self.task.section.augment if labelled else None
        examples = read_examples(
            source,
            self.task.columns if labelled else (self.task.section.image, ""),
            self.label_names if labelled else None,
            self.tools.images,
            count,
            None if section is None else BoxAugmentation(**dict(section)),
            tile=self.task.section.tile,
            overlap=self.task.section.overlap,
            form=self.task.section.box_format,
        )
        if self.task.section.match != "place":
            return examples
        return replace(examples, places=places(count, *config.grid).astype(np.float32))

    @property
    def of_queries(self) -> bool:
        """Return whether each class has a score by itself, and each block a loss."""
        return "num_queries" in self.tools.model.config.fields

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        if self.of_queries:
            return query_loss(outputs, batch, self.tools.model.config.fields)
        return detection_loss(outputs, batch)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return each detection token's box, likeliest class and its score: `[R, 1, Q, ...]`.

        The class `no object` is not among the choices, as in DETR. Of queries they are the best
        pairs of a box and a class.
        """
        if self.of_queries:
            return best_pairs(outputs)
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
        return box_scores(gold, self._detections(outcomes, examples), self.label_names)

    def _detections(
        self, outcomes: Outcomes, examples: PieceExamples
    ) -> list[dict[str, np.ndarray]]:
        """Return the detections of each image, of all its pieces, the best first."""
        detections = []
        for number, size in enumerate(examples.sizes.tolist()):
            own = np.flatnonzero(examples.pieces[:, 0] == number)
            moved = [
                absolute(outcomes["boxes"][piece], examples.pieces[piece, 1:], tuple(size))
                for piece in own
            ]
            boxes = np.concatenate(moved)
            labels, scores = outcomes["classes"][own].ravel(), outcomes["scores"][own].ravel()
            if len(own) > 1 or self.task.section.match == "place":  # objects may be found twice
                order = unlike(boxes, labels, scores, self.task.section.merge)
            else:
                order = np.argsort(-scores, kind="stable")
            arrays = {"boxes": boxes, "labels": labels, "scores": scores}
            detections.append({name: values[order] for name, values in arrays.items()})
        return detections

    def describe(
        self, source: Source, outcomes: Outcomes, examples: PieceExamples
    ) -> Iterator[dict[str, Any]]:
        every = self._detections(outcomes, examples)
        lowest = SURE if examples.truth is None else lowest_shown(every, examples.truth)
        for number, detections in enumerate(every):
            sure = {
                name: values[detections["scores"] >= lowest] for name, values in detections.items()
            }
            objects = _objects(sure["boxes"], sure["labels"], self.label_names)
            for one, score in zip(objects, sure["scores"], strict=True):
                one["score"] = round(float(score), 4)
            value = source.rows([number], [self.task.section.image])[0][self.task.section.image]
            line = {"file": value} if isinstance(value, str) else {}
            if examples.truth is None:
                yield line | {"objects": objects}
                continue
            truth = examples.truth[number]
            gold = _objects(truth.corners, truth.labels, self.label_names)
            if number < PICTURES:
                image = opened(source, number, self.task.section.image)
                line["image"] = picture(annotate(image, gold, objects), PICTURE_SIDE)
            yield line | {"gold": gold, "objects": objects, "lowest_score": lowest}

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.image: path} for path in paths_from_input(inputs))


def lowest_shown(detections: Sequence[Mapping[str, np.ndarray]], truth: Sequence[Boxes]) -> float:
    """Return the score from which on a split's boxes are shown beside the true ones.

    It is at most `SURE`, and such that at least as many are shown as there are true ones: the
    scores of a detector that has trained for a short time may all be low.
    """
    scores = np.sort(np.concatenate([one["scores"] for one in detections]))[::-1]
    count = min(sum(len(one.corners) for one in truth), len(scores))
    return min(SURE, float(scores[count - 1])) if count else SURE


def best_pairs(outputs: Outputs) -> dict[str, jax.Array]:
    """Return the Q best pairs of a box and a class, the best first: `[R, 1, Q, ...]` each.

    Args:
        outputs: `logits` `[R, Q, C]`, `pred_boxes` `[R, Q, 4]`.

    Source: `post_process_object_detection` of `transformers`' `image_processing_rf_detr.py`.
    """
    scores = jax.nn.sigmoid(outputs["logits"])
    rows, queries, classes = scores.shape
    best, pairs = jax.lax.top_k(scores.reshape(rows, -1), queries)
    boxes = jnp.take_along_axis(outputs["pred_boxes"], (pairs // classes)[..., None], axis=1)
    pair = {"boxes": boxes, "scores": best, "classes": pairs % classes}
    return {name: value[:, None] for name, value in pair.items()}


def _objects(boxes: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return boxes for the predictions file: the class, and the corners in pixels."""
    return [
        {"label": names[int(label)], "box": [round(float(corner), 1) for corner in box]}
        for box, label in zip(boxes, labels, strict=True)
    ]


class ObjectDetection(Task):
    """Object detection: boxes around objects in an image, and their classes."""

    section: Section

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundObjectDetection:
        bound = BoundObjectDetection(self, tools, label_names)
        if self.section.match == "place" and bound.of_queries:
            raise UserError(
                f"task.match: the detections of a {tools.model.model_type} have no place of their "
                "own.",
                "Leave it out, or start from a plain ViT with model.detection_tokens.",
            )
        return bound

    bound = BoundObjectDetection
    card = Card(
        "object-detection",
        "AutoModelForObjectDetection",
        (READ_IMAGE, APPLY, "print(outputs.logits)"),
    )
    metrics = loss_and("map", "map_50", "map_75", *(f"map_{size}" for size in SIZES))
    primary = "map"
    view = "boxes"

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The column that holds the image."""
        return (self.section.image,)

    @property
    def columns(self) -> tuple[str, str]:
        return (self.section.image, self.section.objects)

    def label_names(self, source: Source) -> tuple[str, ...]:
        """Return the config's classes, else the data's, else the labels of the training rows."""
        named = self.section.labels or source.class_names(self.section.objects)
        if named:
            return tuple(named)
        column = self.section.objects
        names: set[str] = set()
        for number, row in source.each([column]):
            _, classes, *_ = read_objects(row[column], source.place(number))
            names |= set(map(str, classes))
        if not names:
            raise UserError(
                f"{source.spec}: no image has a box to learn from.",
                "Check the slice, and the column of task.objects.",
            )
        return tuple(sorted(names))

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        """Return the files of a processor that reads whole images, a detector's."""
        del labels
        kind = YOLOS if model.model_type == "yolos" else None
        return whole_image_files(model.source.folder, model.asked_size, kind)


make = ObjectDetection
