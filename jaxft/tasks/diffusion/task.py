"""Image generation by denoising, with a class, a prompt, or nothing.

The denoiser of a pipeline of `diffusers` trains. Its autoencoder and text tower are frozen, and
what they make of the images and prompts is computed once. A batch has noisy images, so that the
loss is one forward pass; what is predicted (the noise, the velocity, the data or the flow) is as
the pipeline's scheduler says.

Source: Ho et al. (2020), https://arxiv.org/abs/2006.11239; Ho and Salimans (2022),
https://arxiv.org/abs/2207.12598.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.image.colors import contact_sheet
from jaxft.data.image.images import ImageProcessor
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.frechet import frechet
from jaxft.models.diffusion.schedule import Schedule
from jaxft.models.family import class_ids
from jaxft.models.model import Model
from jaxft.models.pipeline import PIPELINE_FILE
from jaxft.models.tower.tower import Compute
from jaxft.tasks.diffusion.examples import NoisyImages, PixelImages
from jaxft.tasks.diffusion.frozen import latents_of
from jaxft.tasks.diffusion.pipeline import (
    autoencoder_of,
    painted,
    pipeline_of,
    processor_of,
    schedule_of,
    side_of,
)
from jaxft.tasks.diffusion.prompts import states_of
from jaxft.tasks.diffusion.sampling import Sampling, check_pipeline, classes_of
from jaxft.tasks.diffusion.section import DiffusionSection as Section
from jaxft.tasks.diffusion.text_towers import TextTower, overlong, text_towers_of
from jaxft.tasks.parts.arrays import Facts
from jaxft.tasks.parts.card import Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Params, Sum, Task
from jaxft.tasks.parts.image_features import features_by
from jaxft.tasks.parts.images import check_images, exact_picture, open_image
from jaxft.tasks.parts.labels import (
    BadValue,
    class_id,
    label_names,
    number_of,
    read_rows,
    text_of,
)
from jaxft.tasks.parts.metric import LOWER, Metric

SHOWN = 16  # held-out images stored in the predictions file
SHEET = 64  # generated images on a contact sheet


class BoundDiffusion(BoundTask["Diffusion", NoisyImages]):
    """`Diffusion` on a model."""

    @property
    def _own(self) -> Section:
        return self.task.section

    @cached_property
    def _schedule(self) -> Schedule:
        return schedule_of(self.tools.model)

    @cached_property
    def _autoencoder(self) -> Model | None:
        return autoencoder_of(self.tools.model, self.tools.weights)

    @cached_property
    def _processor(self) -> ImageProcessor:
        return processor_of(side_of(self.tools.model, self._autoencoder, self._own.size))

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        if self._own.label is not None:
            self._label(row)
        if self._own.text is not None:
            self._prompt(row)
        if self._own.loss_weight is not None:
            self._loss_weight(row)
        open_image(source, number, row[self._own.image])

    def _label(self, row: Mapping[str, Any]) -> int:
        assert self._own.label is not None  # callers check
        return class_id(row[self._own.label], self._own.label, self.label_names)

    def _loss_weight(self, row: Mapping[str, Any]) -> float:
        column = self._own.loss_weight
        assert column is not None  # callers check
        weight = number_of(row[column], column)
        if weight < 0:
            raise BadValue(f"has {weight:g} in {column}, and a weight is 0 or more")
        return weight

    @cached_property
    def _text_towers(self) -> tuple[TextTower, ...]:
        model = self.tools.model
        return text_towers_of(model, pipeline_of(model), self.tools.weights)

    def _prompt(self, row: Mapping[str, Any]) -> str:
        """Return a row's prompt; an error where a text tower does not take all of it."""
        assert self._own.text is not None  # callers check
        text = text_of(row[self._own.text], self._own.text)
        if (lengths := overlong(text, self._text_towers)) is not None:
            raise BadValue(
                f"has {lengths[0]} tokens in {self._own.text}, and the text tower takes "
                f"{lengths[1]}",
                "Shorten the prompt.",
            )
        return text

    def examples(self, source: Source, *, labelled: bool = True) -> NoisyImages:
        check_pipeline(self.tools.model, self._own, self._schedule, len(self.label_names))
        own, labels = self._own, None
        if own.label is not None:
            labels = np.array(read_rows(source, (own.label,), self._label), np.int32)
        check_images(source, own.image)
        pixels = PixelImages(source, own.image, self._processor)
        texts = None
        if own.text is not None:
            prompts = read_rows(source, (own.text,), self._prompt)
            model, side = self.tools.model, pixels.processor.size[0]
            towers = self._text_towers
            texts = states_of(self.tools, model, pipeline_of(model), towers, prompts, side)
        weights = None
        if own.loss_weight is not None:
            weights = np.array(read_rows(source, (own.loss_weight,), self._loss_weight), np.float32)
        width = self.tools.model.config.fields.get("cross_attention_dim")
        return NoisyImages(
            latents_of(self.tools, self._autoencoder, pixels),
            pixels,
            self._schedule,
            own,
            labels,
            classes_of(self.tools.model),
            texts,
            weights,
            None if width is None or texts is not None else int(np.max(width)),
        )

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        weights = batch["weights"][:, 0]
        return jnp.sum(self._losses(outputs, batch) * weights), weights.sum()

    def _losses(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Return the loss of each row: `[R]`. Channels behind the image's are of a variance."""
        wanted = batch["target"]
        distance = jnp.square(outputs["sample"][:, : wanted.shape[1]] - wanted)
        return distance.mean((1, 2, 3)) * batch["loss_weights"][:, 0]

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """Sample an image (`drawn`) for each of the first examples, `[R, C, h, w]`."""
        if not self._own.samples:
            return {}
        sampling = Sampling(self.tools.model, self._own, self._schedule)
        return {"drawn": sampling.first_images(params, batch, compute)}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        drawn = {"drawn": outputs["drawn"][:, None]} if "drawn" in outputs else {}
        return {"loss": self._losses(outputs, batch)[:, None], **drawn}

    def _drawn(self, outcomes: Outcomes, count: int) -> np.ndarray:
        """Return the first images drawn in an evaluation: `[N, H, W, 3]` uint8."""
        values = np.asarray(outcomes["drawn"][:count], np.float32)
        return painted(pipeline_of(self.tools.model).folder, self._autoencoder, values)

    def _picture(self, source: Source, number: int, value: Any) -> np.ndarray:
        return self._processor.fit(open_image(source, number, value))

    def summarise(self, outcomes: Outcomes, examples: NoisyImages) -> dict[str, float]:
        count = min(self._own.samples, len(examples))
        if self._own.features is None:
            return {}
        if count < 2:
            raise UserError(
                "task.features compares two or more held-out images, and there is one.",
                "Use a larger split, or set task.features=null.",
            )
        features = features_by(self._own.features, self._own.feature_size)
        source, column = examples.pixels.source, self._own.image
        rows = source.each([column], range(count))
        held_out = np.stack([self._picture(source, n, row[column]) for n, row in rows])
        return {
            "frechet_distance": frechet(features(self._drawn(outcomes, count)), features(held_out))
        }

    def describe(
        self, source: Source, outcomes: Outcomes, examples: NoisyImages
    ) -> Iterator[dict[str, Any]]:
        """Yield the loss of each image; for the first also the image and the one generated."""
        shown = min(self._own.samples, SHOWN, len(examples))
        drawn = self._drawn(outcomes, shown) if shown else ()
        for number, row in source.each([self._own.image]):
            value = row[self._own.image]
            line: dict[str, Any] = {"file": value} if isinstance(value, str) else {}
            if examples.class_ids is not None:
                line["label"] = self.label_names[int(examples.class_ids[number])]
            if examples.texts is not None:
                line["text"] = examples.texts.texts[int(examples.texts.prompts[number])]
            line["loss"] = float(outcomes["loss"][number])
            if number < shown:
                line["image"] = exact_picture(self._picture(source, number, value))
                line["drawn"] = exact_picture(drawn[number])
            yield line

    def sample_sheet(self, outcomes: Outcomes, examples: NoisyImages) -> np.ndarray | None:
        count = min(self._own.samples, len(examples), SHEET)
        return contact_sheet(list(self._drawn(outcomes, count))) if count else None


class Diffusion(Task):
    """Image generation by denoising, with a class, a prompt, or nothing."""

    section: Section

    bound = BoundDiffusion
    primary = "loss"
    view = "samples"

    @property
    def card(self) -> Card:
        named = "unconditional-image-generation" if self.section.text is None else "text-to-image"
        return Card(named, "DiffusionPipeline", library="diffusers")

    @property
    def metrics(self) -> Mapping[str, Metric]:
        loss = {"loss": LOWER}
        return loss if self.section.features is None else {**loss, "frechet_distance": LOWER}

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        names = own.image, own.label, own.text, own.loss_weight
        return tuple(name for name in names if name is not None)

    def label_names(self, source: Source) -> tuple[str, ...]:
        own = self.section
        return () if own.label is None else label_names(source, own.label, own.labels)

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        """Return the pipeline's index with the names of the classes, as `DiTPipeline` reads them.

        Classes of the checkpoint that the run does not have are left out: their names may be among
        the run's, and `DiTPipeline` finds a class by its name.
        """
        if not labels:
            return {}
        index = pipeline_of(model).index
        return {PIPELINE_FILE: {**index, "id2label": class_ids(labels)["id2label"]}}


make = Diffusion
