"""Examples of diffusion: images with noise, in training anew in each epoch.

The noise of an example depends on its number and the epoch alone, so that batches, workers and
hosts do not change it. In an evaluation it is the same each time, so that only the model differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxft.data.cache import ExampleArrays, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom, ExampleRandom
from jaxft.models.diffusion.samplers import shifted
from jaxft.models.diffusion.schedule import Schedule, mixed, target
from jaxft.tasks.diffusion.prompts import TextStates, of_nothing
from jaxft.tasks.diffusion.section import DiffusionSection as Section
from jaxft.tasks.parts.examples import Examples, row_marks
from jaxft.tasks.parts.images import DecodedExamples

PIXELS_A_POSITION = (
    1024  # by which a frozen autoencoder's batches get fewer images of a larger size
)
SCORED = EpochRandom(0, 0)  # the noise of an evaluation


@dataclass(frozen=True)
class PixelImages(DecodedExamples):
    """Images as an autoencoder reads them: `pixel_values`."""

    @property
    def fingerprint(self) -> str:
        return self.images_fingerprint

    @property
    def lengths(self) -> np.ndarray:
        height, width = self.processor.size
        return np.full(len(self), max(1, height * width // PIXELS_A_POSITION), np.int64)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        return {**self.pixel_values(index), **row_marks(index)}


@dataclass(frozen=True)
class Latents:
    """Images of a denoiser before the noise, one per row.

    Args:
        stored: `mean` `[1, C, h, w]`, and `std` of an autoencoder's latents.
        scale, shift: those of the autoencoder: latents are shifted, then scaled.
    """

    stored: ExampleArrays
    scale: float = 1.0
    shift: float = 0.0

    def draw(self, number: int, chance: ExampleRandom) -> np.ndarray:
        """Return an example's `[1, C, h, w]`, drawn from its distribution."""
        one = self.stored[number]
        data = one["mean"]
        if "std" in one:
            data = data + one["std"] * normal(chance, data.shape)
        return (data - self.shift) * self.scale


def normal(chance: ExampleRandom, shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal numbers, by the method of Box and Muller (1958): float32."""
    count = int(np.prod(shape))
    first, second = chance.uniform(2 * count).reshape(2, count)
    numbers = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return numbers.astype(np.float32).reshape(shape)


@dataclass(frozen=True)
class NoisyImages(Examples):
    """Images with noise; see `Examples`.

    Args:
        latents: of the images.
        pixels: the images themselves.
        schedule: how much noise there is at each step.
        section: the config's.
        class_ids: `[examples]`, or None.
        no_class: the class that stands for none, of a model of classes; else None.
        texts: what is read of the prompts, or None.
        row_weights: `[examples]` the weight of each one's loss, or None.
        source_width: the width of the text states that a model reads that gets none; else None.
        is_scored: whether the noise is that of an evaluation.
    """

    latents: Latents
    pixels: PixelImages
    schedule: Schedule
    section: Section
    class_ids: np.ndarray | None
    no_class: int | None
    texts: TextStates | None
    row_weights: np.ndarray | None
    source_width: int | None
    is_scored: bool = False

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def fingerprint(self) -> str:
        parts = fingerprint(self.latents.stored), self.section, self.schedule
        digest = hashlib.sha256(repr(parts).encode())
        if self.texts is not None:
            digest.update(repr(self.texts.texts).encode() + self.texts.prompts.tobytes())
        for name, array in (("classes", self.class_ids), ("weights", self.row_weights)):
            if array is not None:
                digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def random(self) -> bool:
        return not self.is_scored

    def scored(self) -> NoisyImages:
        return replace(self, is_scored=True)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length
        random = SCORED if self.is_scored else epoch_random
        numbers = index[:, 0].tolist()
        present = [max(number, 0) for number in numbers]  # any image where a row has no example
        rows = [self._row(number, random.of(number)) for number in present]
        batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return {**batch, **row_marks(index)}

    def _row(self, number: int, chance: ExampleRandom) -> dict[str, np.ndarray]:
        """Return an example's arrays, `[1, ...]` each."""
        data = self.latents.draw(number, chance).astype(np.float32)
        noise = normal(chance, data.shape)
        step, signal, level = self._step(chance)
        named = not self.is_scored and chance.uniform(1)[0] < self.section.condition_dropout
        kind = self.schedule.prediction
        weight = self._weight(signal, level)
        if self.row_weights is not None:
            weight = weight * self.row_weights[number]
        return {
            "sample": np.asarray(mixed(data, noise, signal, level), np.float32),
            "target": np.asarray(target(kind, data, noise, signal, level), np.float32),
            "timestep": step.astype(np.float32),
            "loss_weights": weight[None],
            **self._condition(number, nothing=bool(named)),
        }

    def _step(self, chance: ExampleRandom) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw a step: what the model is told, and the factors of data and noise, `[1]` each."""
        share: np.ndarray = chance.uniform(1).astype(np.float32)
        if self.section.timesteps == "logit_normal":
            logit = self.section.logit_mean + self.section.logit_std * normal(chance, (1,))
            share = 1 / (1 + np.exp(-logit))
        if self.schedule.is_flow:
            level = shifted(share, self.schedule.fields["shift"]).astype(np.float32)
            return level * self.schedule.steps, 1 - level, level
        step = np.minimum((share * self.schedule.steps).astype(np.int64), self.schedule.steps - 1)
        return step, *self.schedule.levels(step)

    def _weight(self, signal: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Return the weight of the loss at a step: `[1]` float32.

        Source: Hang et al. (2023), https://arxiv.org/abs/2303.09556.
        """
        if self.section.min_snr is None:
            return np.ones(1, np.float32)
        ratio = (signal / np.maximum(level, 1e-8)) ** 2
        bounded = np.minimum(ratio, self.section.min_snr)
        weights: dict[str, Callable[[], Any]] = {
            "epsilon": lambda: bounded / np.maximum(ratio, 1e-12),
            "v_prediction": lambda: bounded / (ratio + 1),
            "sample": lambda: bounded,
        }
        return np.asarray(weights[self.schedule.prediction](), np.float32)

    def _condition(self, number: int, nothing: bool) -> dict[str, np.ndarray]:
        """Return an example's class or prompt; in an evaluation the empty one beside it."""
        condition: dict[str, np.ndarray] = {}
        if self.no_class is not None:
            none = self.no_class if nothing or self.class_ids is None else None
            own = none if none is not None else int(self.class_ids[number])  # type: ignore[index]
            condition["class_labels"] = np.array([own], np.int32)
        if self.texts is not None:
            own = 0 if nothing else int(self.texts.prompts[number])
            condition |= self.texts.of(own)
            if self.is_scored:
                condition |= of_nothing(self.texts.of(0))
        elif self.source_width is not None:
            condition["encoder_hidden_states"] = np.zeros((1, 1, self.source_width), np.float32)
        return condition
