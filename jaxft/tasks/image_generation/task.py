"""Image generation pixel by pixel: the next color of a sequence, unconditional or by class.

An image is a sequence of color ids, each pixel's the nearest of the checkpoint's colors, after a
start token. With classes (`task.label`), the start token is that of the class, appended to the
vocabulary: such a checkpoint is an ImageGPT with a larger vocabulary, which `transformers` loads
with the same outputs (`models/families/gpt2/imagegpt_classes.py`).

Bits per dimension are the mean of -log2 of the probability of a pixel's color. They are comparable
between models of the same image size and colors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.image.colors import colors_of, contact_sheet, painted
from jaxft.data.image.images import ImageProcessor
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.frechet import frechet
from jaxft.models.generate.images import draw_images, first_word
from jaxft.models.layers.loss import UNSCORED
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tasks.image_generation.section import ImageGenerationSection as Section
from jaxft.tasks.parts.card import Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Params, Sum, Sums, Task
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.image_features import features_by
from jaxft.tasks.parts.images import check_images, exact_picture, images_fingerprint, open_image
from jaxft.tasks.parts.labels import class_id, label_names, read_rows
from jaxft.tasks.parts.metric import HIGHER, LOWER, Metric
from jaxft.tasks.parts.token_examples import CachedExamples, summed_losses

GENERATED = ("drawn", "completed")  # names in the predictions file: sampled whole, or lower half
SEED = 0  # of sampling: the same noise at every evaluation, so that only the model differs
SHOWN = 16  # held-out images stored in the predictions file
SHEET = 64  # generated images on a contact sheet
METRICS = {"loss": LOWER, "bits_per_dimension": LOWER, "accuracy": HIGHER}


@dataclass(frozen=True)
class ColorImages(CachedExamples):
    """Images as sequences of colors, one per row; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the color ids `[H W]` of each image, `colours`.
        processor: the checkpoint's image processor.
        class_ids: `[examples]`; None for unconditional generation.
    """

    processor: ImageProcessor
    class_ids: np.ndarray | None

    @property
    def labels(self) -> np.ndarray | None:
        return self.class_ids

    @property
    def colors(self) -> ImageProcessor:
        return self.processor

    def picture(self, number: int) -> np.ndarray:
        """Return an image in its colors: `[H, W, 3]` uint8."""
        return painted(self.tokens[number]["colours"], self.processor)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        pixels = math.prod(self.processor.size)
        targets = np.full((len(index), pixels), UNSCORED, np.int32)
        tokens = np.zeros((len(index), pixels), np.int32)
        for row, number in enumerate(index[:, 0].tolist()):
            if number < 0:
                continue
            label = None if self.labels is None else int(self.labels[number])
            targets[row] = self.tokens[number]["colours"]
            tokens[row, 0] = first_word(len(self.processor.clusters or ()), label)
            tokens[row, 1:] = targets[row, :-1]
        return {"input_ids": tokens, "targets": targets, **row_marks(index)}


class BoundImageGeneration(BoundTask["ImageGeneration", ColorImages]):
    """`ImageGeneration` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        if self.task.section.label is not None:
            self._label(row)
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> ColorImages:
        column, own = self.task.section.image, self.task.section
        labels = None
        if own.label is not None:
            labels = np.array(read_rows(source, (own.label,), self._label), np.int32)
        check_images(source, column)
        tokens = self.tools.once(
            partial(self._read, source, self.tools.images),
            kind="colours",
            images=images_fingerprint(source, column, self.tools.images),
        )
        return ColorImages(tokens, self.tools.images, labels)

    def _label(self, row: Mapping[str, Any]) -> int:
        assert self.task.section.label is not None  # callers check
        return class_id(row[self.task.section.label], self.task.section.label, self.label_names)

    def _read(
        self, source: Source, processor: ImageProcessor
    ) -> tuple[Iterator[dict[str, np.ndarray]], dict[str, Any]]:
        """Yield the colors of every image."""
        column = self.task.section.image
        images = (
            processor(open_image(source, number, row[column]))
            for number, row in source.each([column])
        )
        return ({"colours": colors_of(image, processor)} for image in images), {}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return summed_losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        total, weight = self.loss(outputs, batch)
        return {
            "bits_per_dimension": (total / math.log(2), weight),
            "accuracy": (jnp.sum(outputs["hits"], dtype=jnp.float32), weight),
        }

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """Sample an image (`drawn`) and a lower half (`completed`) for each of the first images.

        Both are `[R, N]` color ids, conditioned on the image's class if there is one. A batch
        without any of the first images costs nothing.
        """
        if not self.task.section.samples:
            return {}
        (tower,) = self.tools.model.towers.values()
        assert isinstance(tower, Tower)  # ImageGPT has one tower
        starts, ids = batch["input_ids"], batch["example_ids"][:, 0]
        processor = self.tools.images
        height, width = processor.size
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(SEED)))(ids)
        generate = partial(
            draw_images,
            tower,
            params,
            keys=keys,
            compute=compute,
            pixels=height * width,
            colours=len(processor.clusters or ()),
        )
        half = 1 + height // 2 * width

        def sampled() -> tuple[jax.Array, jax.Array]:
            return generate(starts[:, :1]), generate(starts[:, :half])

        def zeros() -> tuple[jax.Array, jax.Array]:
            return jnp.zeros_like(starts), jnp.zeros_like(starts)

        wanted = ((ids >= 0) & (ids < self.task.section.samples)).any()
        drawn, completed = jax.lax.cond(wanted, sampled, zeros)
        return {"drawn": drawn, "completed": completed}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        images = {
            name: outputs[name][:, None] for name in GENERATED if name in outputs
        }  # [R, 1, N]
        return {"loss": outputs["losses"].mean(-1, keepdims=True), **images}  # [R, 1]

    def summarise(self, outcomes: Outcomes, examples: ColorImages) -> dict[str, float]:
        count = min(self.task.section.samples, len(examples))
        if self.task.section.features is None:
            return {}
        if count < 2:
            raise UserError(
                "task.features compares two or more held-out images, and there is one.",
                "Use a larger split, or set task.features=null.",
            )
        features = features_by(self.task.section.features, self.task.section.feature_size)
        held_out = np.stack([examples.picture(number) for number in range(count)])
        drawn = np.stack([painted(one, examples.processor) for one in outcomes["drawn"][:count]])
        return {"frechet_distance": frechet(features(drawn), features(held_out))}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: ColorImages
    ) -> Iterator[dict[str, Any]]:
        """Yield the bits of each image; for the first also the image and those generated."""
        shown = min(self.task.section.samples, SHOWN)
        for number, row in source.each([self.task.section.image]):
            value = row[self.task.section.image]
            line: dict[str, Any] = {"file": value} if isinstance(value, str) else {}
            if examples.labels is not None:
                line["label"] = self.label_names[int(examples.labels[number])]
            line["bits_per_dimension"] = float(outcomes["loss"][number]) / math.log(2)
            if number < shown:
                line["image"] = exact_picture(examples.picture(number))
                for name in GENERATED:
                    line[name] = exact_picture(painted(outcomes[name][number], examples.processor))
            yield line

    def sample_sheet(self, outcomes: Outcomes, examples: ColorImages) -> np.ndarray | None:
        """Return the images sampled in an evaluation side by side: `[H, W, 3]` uint8, or None."""
        count = min(self.task.section.samples, len(examples), SHEET)
        if not count:
            return None
        drawn = [painted(one, examples.processor) for one in outcomes["drawn"][:count]]
        return contact_sheet(drawn)


class ImageGeneration(Task):
    """Image generation pixel by pixel, unconditional or by class."""

    section: Section

    # No Auto class has it.
    bound = BoundImageGeneration
    card = Card("unconditional-image-generation", "ImageGPTForCausalImageModeling")
    primary = "bits_per_dimension"
    view = "samples"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return METRICS if self.section.features is None else {**METRICS, "frechet_distance": LOWER}

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        return (own.image,) if own.label is None else (own.image, own.label)

    def label_names(self, source: Source) -> tuple[str, ...]:
        own = self.section
        return () if own.label is None else label_names(source, own.label, own.labels)

    @property
    def label_column(self) -> str | None:
        return self.section.label


make = ImageGeneration
