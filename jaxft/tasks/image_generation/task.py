"""Images drawn pixel by pixel: the next colour of rows of colours, of any class or by class.

An image is read as a row of colours, each pixel the nearest of the checkpoint's list, and begins
with a word of its own. By class (`task.label`) it begins with the word of its class instead, one
for each behind all others: so a checkpoint with classes is an ImageGPT of a larger vocabulary and
nothing else, which `transformers` loads with the same outputs
(`models/families/gpt2/imagegpt_classes.py`).

A dimension, in bits per dimension, is one pixel's colour: the mean of -log2 of the probability that
the model gives to it. Figures compare where size and colours are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.data.image.colors import colors_of, contact_sheet, painted
from jaxft.data.image.images import ImageProcessor
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.metrics.frechet import frechet
from jaxft.models.generate.images import draw_images, first_word
from jaxft.models.layers.loss import UNSCORED
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tasks.image_generation.image_features import features_by
from jaxft.tasks.image_generation.section import ImageGenerationSection as Section
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Batch,
    BoundTask,
    Card,
    Metric,
    Outcomes,
    Outputs,
    Params,
    Sum,
    Sums,
    Task,
)
from jaxft.tasks.parts.examples import Examples, row_marks
from jaxft.tasks.parts.images import check_images, exact_picture, images_fingerprint, open_image
from jaxft.tasks.parts.labels import class_id, label_names, read_rows
from jaxft.tasks.parts.tools import Tools

DRAWN = ("drawn", "completed")
SEED = 0  # of what is drawn: the same noise at every evaluation, so that only the model differs
SHOWN = 16  # held-out images that are kept with their pictures
SHEET = 64  # drawn images on a contact sheet


def make(section: Section) -> ImageGeneration:
    """The task as the config's `task` section describes it."""
    return ImageGeneration(section)


@dataclass(frozen=True)
class Colours(Examples):
    """Images as rows of colours, a row each; see `jaxft.tasks.parts.contract.Examples`.

    Args:
        tokens: `colours` `[H W]` of each.
        processor: the checkpoint's.
        class_ids: `[examples]`; None where images are drawn without.
    """

    tokens: Ragged | InMemory
    processor: ImageProcessor
    class_ids: np.ndarray | None

    @property
    def labels(self) -> np.ndarray | None:
        return self.class_ids

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def picture(self, number: int) -> np.ndarray:
        """An image in its colours: `[H, W, 3]` uint8."""
        return painted(self.tokens[number]["colours"], self.processor)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        pixels = math.prod(self.processor.size)
        targets = np.full((len(index), pixels), UNSCORED, np.int32)
        words = np.zeros((len(index), pixels), np.int32)
        for row, number in enumerate(index[:, 0].tolist()):
            if number < 0:
                continue
            label = None if self.labels is None else int(self.labels[number])
            targets[row] = self.tokens[number]["colours"]
            words[row, 0] = first_word(len(self.processor.clusters or ()), label)
            words[row, 1:] = targets[row, :-1]
        return {
            "input_ids": words,
            "targets": targets,
            **row_marks(index),
        }


@dataclass(frozen=True)
class ImageGeneration(Task):
    """Images drawn pixel by pixel: the next colour of rows of colours, of any class or by class."""

    section: Section

    kind = "image_generation"
    head = "image_generation"
    # No Auto class has it.
    card = Card("unconditional-image-generation", "ImageGPTForCausalImageModeling")
    view = "samples"
    primary = "bits_per_dimension"

    @property
    def metrics(self) -> Mapping[str, Metric]:
        found = {"loss": LOWER, "bits_per_dimension": LOWER, "accuracy": HIGHER}
        return found if self.section.features is None else {**found, "frechet_distance": LOWER}

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

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundImageGeneration:
        return BoundImageGeneration(self, tools, label_names)


class BoundImageGeneration(BoundTask[ImageGeneration, Colours]):
    """`ImageGeneration` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its class, or an image that does not decode."""
        if self.task.section.label is not None:
            self._label(row)
        open_image(source, number, row[self.task.section.image])

    def examples(self, source: Source, *, labelled: bool = True) -> Colours:
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
        return Colours(tokens, self.tools.images, labels)

    def _label(self, row: Mapping[str, Any]) -> int:
        assert self.task.section.label is not None  # else nobody asks
        return class_id(row[self.task.section.label], self.task.section.label, self.label_names)

    def _read(
        self, source: Source, processor: ImageProcessor
    ) -> tuple[Iterator[dict[str, np.ndarray]], dict[str, Any]]:
        """The colours of every image."""
        column = self.task.section.image
        images = (
            processor(open_image(source, number, row[column]))
            for number, row in source.each([column])
        )
        return ({"colours": colors_of(image, processor)} for image in images), {}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return jnp.sum(outputs["losses"]), _scored(batch).sum()

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        total, weight = self.loss(outputs, batch)
        return {
            "bits_per_dimension": (total / math.log(2), weight),
            "accuracy": (jnp.sum(outputs["hits"], dtype=jnp.float32), weight),
        }

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """For each of the first images one `drawn` [R, N], and itself `completed` [R, N].

        Of an image the lower half is drawn anew, of its class where there are any. A batch without
        any of the first images costs nothing.
        """
        if not self.task.section.samples:
            return {}
        (tower,) = self.tools.model.towers.values()
        assert isinstance(tower, Tower)  # a part alone is no model
        begun, ids = batch["input_ids"], batch["example_ids"][:, 0]
        processor = self.tools.images
        height, width = processor.size
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(SEED)))(ids)
        epoch_random = partial(
            draw_images,
            tower,
            params,
            keys=keys,
            compute=compute,
            pixels=height * width,
            colours=len(processor.clusters or ()),
        )
        half = 1 + height // 2 * width

        def all_of_them() -> tuple[jax.Array, jax.Array]:
            return epoch_random(begun[:, :1]), epoch_random(begun[:, :half])

        def none_of_them() -> tuple[jax.Array, jax.Array]:
            return jnp.zeros_like(begun), jnp.zeros_like(begun)

        wanted = ((ids >= 0) & (ids < self.task.section.samples)).any()
        drawn, completed = jax.lax.cond(wanted, all_of_them, none_of_them)
        return {"drawn": drawn, "completed": completed}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        images = {name: outputs[name][:, None] for name in DRAWN if name in outputs}  # [R, 1, N]
        return {"loss": outputs["losses"].mean(-1, keepdims=True), **images}  # [R, 1]

    def summarise(self, outcomes: Outcomes, examples: Colours) -> dict[str, float]:
        count = min(self.task.section.samples, len(examples))
        if self.task.section.features is None:
            return {}
        if count < 2:
            raise UserError("task.features: it takes two held-out images or more to compare.")
        features = features_by(self.task.section.features, self.task.section.feature_size)
        held_out = np.stack([examples.picture(number) for number in range(count)])
        drawn = np.stack([painted(one, examples.processor) for one in outcomes["drawn"][:count]])
        return {"frechet_distance": frechet(features(drawn), features(held_out))}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Colours
    ) -> Iterator[dict[str, Any]]:
        """The bits of each image; of the first ones also how they look, what was made of their
        upper half, and an image that was drawn beside them."""
        shown = min(self.task.section.samples, SHOWN)
        for number, row in source.each([self.task.section.image]):
            value = row[self.task.section.image]
            said: dict[str, Any] = {"file": value} if isinstance(value, str) else {}
            if examples.labels is not None:
                said["label"] = self.label_names[int(examples.labels[number])]
            said["bits_per_dimension"] = float(outcomes["loss"][number]) / math.log(2)
            if number < shown:
                said["image"] = exact_picture(examples.picture(number))
                for name in DRAWN:
                    said[name] = exact_picture(painted(outcomes[name][number], examples.processor))
            yield said

    def sample_sheet(self, outcomes: Outcomes, examples: Colours) -> np.ndarray | None:
        """The images drawn at an evaluation side by side: `[H, W, 3]` uint8; None without any."""
        count = min(self.task.section.samples, len(examples), SHEET)
        if not count:
            return None
        drawn = [painted(one, examples.processor) for one in outcomes["drawn"][:count]]
        return contact_sheet(drawn)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        raise UserError("This run draws images, and has no class to give one.")


def _scored(batch: Batch) -> jax.Array:
    """1 where a pixel is scored: [R, N]."""
    return (batch["targets"] != UNSCORED).astype(jnp.float32)
