"""Semantic segmentation: a class for each pixel of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.image.files import whole_image_files
from jaxft.data.image.overlay import exact_mask, overlaid, palette
from jaxft.data.sources.masks import PIXELS
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.segmentation import iou_by_class, mean_iou, mean_recall, mean_share
from jaxft.models.model import Model
from jaxft.tasks.object_detection.boxes import opened
from jaxft.tasks.parts.arrays import Facts
from jaxft.tasks.parts.card import APPLY, READ_IMAGE, Card
from jaxft.tasks.parts.contract import (
    Apply,
    Batch,
    BoundTask,
    Outcomes,
    Outputs,
    Params,
    Sum,
    Sums,
    Task,
)
from jaxft.tasks.parts.images import check_images, paths_from_input, picture, size_of
from jaxft.tasks.parts.metric import HIGHER, LOWER, Metric
from jaxft.tasks.semantic_segmentation.examples import MaskExamples, read_examples
from jaxft.tasks.semantic_segmentation.masks import (
    IGNORED,
    MaskAugmentation,
    MaskReading,
    check_size,
    read_mask,
)
from jaxft.tasks.semantic_segmentation.pixels import (
    confusion,
    enlarged_logits,
    number_of,
    pixel_loss,
)
from jaxft.tasks.semantic_segmentation.section import SemanticSegmentationSection as Section

PICTURE_SIDE = 400  # pixels of an image in a report
PICTURES = 12  # images stored with their masks


class BoundSemanticSegmentation(BoundTask["SemanticSegmentation", MaskExamples]):
    """`SemanticSegmentation` on a model."""

    @property
    def reading(self) -> MaskReading:
        """The meaning of the numbers of masks."""
        section = self.task.section
        return MaskReading(tuple(self.label_names), section.ignore, section.reduce_labels)

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        image, mask = (row[column] for column in self.task.columns)
        check_size(source, number, mask, size_of(source, number, image))
        read_mask(source, number, mask, self.reading)

    def examples(self, source: Source, *, labelled: bool = True) -> MaskExamples:
        section = self.task.section
        if labelled:  # inputs are decoded at once anyway
            check_images(source, section.image)
        examples = read_examples(
            source,
            self.task.columns,
            self.reading if labelled else None,
            self.tools.images,
            section.tile,
            section.overlap,
        )
        if section.augment is None or not labelled:
            return examples
        return replace(examples, augment=MaskAugmentation(**dict(section.augment)))

    def objective(self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        logits = self._logits(apply(params, batch, key))
        right = self._right(logits, batch)
        return {"loss": pixel_loss(logits, batch["mask_labels"]), "pixel_accuracy": right}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return pixel_loss(self._logits(outputs), batch["mask_labels"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        logits = self._logits(outputs)
        matrix = self._confusion(logits, batch).sum(0)
        one = jnp.ones(())
        return {"pixel_accuracy": self._right(logits, batch), "confusion": (matrix, one)}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return each pixel's class `[R, 1, H, W]`, and pixels by class `[R, 1, C]` of masks.

        They are those in both mask and prediction (`shared`), and those in either (`union`).
        """
        logits = self._logits(outputs)
        predicted = {"classes": logits.argmax(-1).astype(jnp.uint8)[:, None]}
        if "mask_labels" not in batch:
            return predicted
        matrix = self._confusion(logits, batch)
        shared = jnp.diagonal(matrix, axis1=1, axis2=2)
        union = matrix.sum(1) + matrix.sum(2) - shared
        return predicted | {"shared": shared[:, None], "union": union[:, None]}

    def _logits(self, outputs: Outputs) -> jax.Array:
        """Return the logits of each pixel of the model's input: `[R, H, W, C]`."""
        return enlarged_logits(outputs["logits"], self.tools.images.size)

    def _right(self, logits: jax.Array, batch: Batch) -> Sum:
        labels = batch["mask_labels"]
        right = (logits.argmax(-1) == labels).sum(dtype=jnp.float32)
        return right, number_of(labels >= 0)

    def _confusion(self, logits: jax.Array, batch: Batch) -> jax.Array:
        return confusion(batch["mask_labels"], logits.argmax(-1), len(self.label_names))

    def summarise(self, outcomes: Outcomes, examples: MaskExamples) -> dict[str, float]:
        shared, union = (outcomes[name] for name in ("shared", "union"))
        return iou_by_class(shared, union, self.label_names)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: MaskExamples
    ) -> Iterator[dict[str, Any]]:
        column = self.task.section.image
        for number in range(len(source)):
            classes = examples.merged(outcomes["classes"], number)
            value = source.rows([number], [column])[0][column]
            line: dict[str, Any] = {"file": value} if isinstance(value, str) else {}
            line["shares"] = self._shares(classes)
            if examples.reading is None:
                yield line | {"mask": exact_mask(classes, palette(self.label_names))}
                continue
            own = examples.pieces[:, 0] == number
            shared, union = (outcomes[name][own].sum(0) for name in ("shared", "union"))
            line["iou"] = round(mean_share(shared, union), 4)
            if number < PICTURES:
                line |= self._pictures(source, number, classes)
            yield line

    def _shares(self, classes: np.ndarray) -> dict[str, float]:
        """Return the share of an image's pixels that each class has, the largest first."""
        counts = np.bincount(classes[classes != IGNORED], minlength=len(self.label_names))
        shares = counts / max(counts.sum(), 1)
        order = [one for one in np.argsort(-shares, kind="stable").tolist() if shares[one]]
        return {self.label_names[one]: round(float(shares[one]), 4) for one in order}

    def _pictures(self, source: Source, number: int, classes: np.ndarray) -> dict[str, Any]:
        """Return pictures of an image, its mask and the predicted one, and the classes' colors."""
        column = self.task.section.mask
        value = source.rows([number], [column])[0][column]
        truth = read_mask(source, number, value, self.reading)
        image, colors = opened(source, number, self.task.section.image), palette(self.label_names)
        masks = {"truth": overlaid(image, truth, colors), "drawn": overlaid(image, classes, colors)}
        shown = np.union1d(np.unique(truth), np.unique(classes))
        pictures: dict[str, Any] = {"image": picture(image, PICTURE_SIDE)}
        pictures |= {name: picture(mask, PICTURE_SIDE) for name, mask in masks.items()}
        pictures["colors"] = {
            self.label_names[one]: f"#{bytes(colors[one]).hex()}" for one in shown if one != IGNORED
        }
        return pictures

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return ({self.task.section.image: path} for path in paths_from_input(inputs))


class SemanticSegmentation(Task):
    """Semantic segmentation: a class for each pixel of an image."""

    section: Section

    bound = BoundSemanticSegmentation
    card = Card(
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        (READ_IMAGE, APPLY, "print(outputs.logits.argmax(1))"),
    )
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": LOWER,
        "miou": Metric(reduce=mean_iou, stream="confusion"),
        "mean_recall": Metric(reduce=mean_recall, stream="confusion"),
        "pixel_accuracy": HIGHER,
    }
    primary = "miou"
    view = "masks"

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The column that holds the image."""
        return (self.section.image,)

    @property
    def columns(self) -> tuple[str, str]:
        return (self.section.image, self.section.mask)

    def label_names(self, source: Source) -> tuple[str, ...]:
        """Return the config's classes, else the data's."""
        named: Sequence[str] | None = self.section.labels or source.class_names(PIXELS)
        if not named:
            raise UserError(
                f"{source.spec}: nothing names the classes of the masks.",
                "Set task.labels to their names in order of id; a masks: folder may have them in "
                "labels.txt, one a line.",
            )
        return tuple(named)

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        """Return the files of a processor that reads whole images."""
        del labels
        return whole_image_files(model.source.folder, model.asked_size)


make = SemanticSegmentation
