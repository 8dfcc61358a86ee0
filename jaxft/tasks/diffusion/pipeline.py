"""Parts of a pipeline beside the denoiser: autoencoder, text tower and schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxft.data.image.images import ImageProcessor
from jaxft.errors import UserError
from jaxft.models.diffusion.schedule import Schedule, read_schedule
from jaxft.models.layers.vision import size_of
from jaxft.models.load import LoadOptions, describe, load
from jaxft.models.model import Model
from jaxft.models.pipeline import Pipeline

AUTOENCODER = "vae"
HALF = (0.5, 0.5, 0.5)  # mean and deviation that take pixels to -1 to 1
ROWS = 4  # images that are decoded at a time


def pipeline_of(model: Model) -> Pipeline:
    """Return the pipeline that a denoiser is a part of.

    Raises:
        UserError: it is none.
    """
    pipeline = model.source.pipeline
    if pipeline is None:
        raise UserError(
            f"model.checkpoint: '{model.source.asked}' is no pipeline: it has no model_index.json.",
            "Name the folder that holds the denoiser's folder and the scheduler's.",
        )
    return pipeline


def schedule_of(model: Model) -> Schedule:
    """Return the noise schedule of a denoiser's pipeline."""
    pipeline = pipeline_of(model)
    if "scheduler" not in pipeline.parts:
        raise UserError(
            f"{pipeline.folder}/model_index.json names no scheduler.", "Fetch the whole pipeline."
        )
    return read_schedule(pipeline.folder / "scheduler")


def autoencoder_of(model: Model, weights: bool = True) -> Model | None:
    """Describe the autoencoder of a denoiser's pipeline; None where it works on pixels.

    Args:
        model: the denoiser.
        weights: whether the checkpoint has weights.
    """
    pipeline = pipeline_of(model)
    if AUTOENCODER not in pipeline.parts:
        return None
    options = LoadOptions(task="autoencoder")
    return describe(str(pipeline.folder / AUTOENCODER), options, weights=weights)


def side_of(model: Model, autoencoder: Model | None, asked: int | None) -> int:
    """Return the pixels a side of a pipeline's images: those asked for, or its own.

    Args:
        model: the denoiser.
        autoencoder: the pipeline's, if any.
        asked: `task.size`.

    Raises:
        UserError: neither the config nor the pipeline says.
    """
    own = model.config.fields["sample_size"]
    if asked is not None:
        return asked
    if own is None:
        raise UserError("The denoiser's config.json has no sample_size.", "Set task.size.")
    return size_of(own)[0] * (1 if autoencoder is None else autoencoder.config.factor)


def painted(folder: Path, autoencoder: Model | None, values: np.ndarray) -> np.ndarray:
    """Turn what a pipeline's denoiser samples, `[N, C, h, w]`, into pixels `[N, H, W, 3]` uint8.

    Args:
        folder: the pipeline's.
        autoencoder: its autoencoder; None where the values are the pixels'.
        values: the samples.
    """
    return pictures_of(values) if autoencoder is None else decoder(folder)(values)


def processor_of(size: int) -> ImageProcessor:
    """Return what makes square images of values from -1 to 1, `[3, size, size]`, of images."""
    return ImageProcessor(
        kind="VaeImageProcessor",
        blend=True,
        resize=size,
        resample=int(Image.Resampling.LANCZOS),
        crop=(size, size),
        factor=1 / 255,
        mean=HALF,
        std=HALF,
    )


def pictures_of(values: np.ndarray) -> np.ndarray:
    """Turn values from -1 to 1, `[N, 3, H, W]`, into pixels: `[N, H, W, 3]` uint8."""
    levels = ((values.transpose(0, 2, 3, 1) + 1) * 127.5).round()
    return levels.clip(0, 255).astype(np.uint8)


@cache
def decoder(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from latents `[N, C, h, w]`, as trained on, to pixels, of a pipeline.

    Args:
        folder: the pipeline's.

    Returns:
        A function to `[N, H, W, 3]` uint8.
    """
    model = load(str(folder / AUTOENCODER), task="autoencoder")
    fields = model.config.fields
    run = jax.jit(lambda params, latents: model.apply(params, {"latents": latents})["sample"])

    def decode(latents: np.ndarray) -> np.ndarray:
        pixels = []
        scaled = latents / fields["scaling_factor"] + (fields["shift_factor"] or 0.0)
        for first in range(0, len(scaled), ROWS):
            some = scaled[first : first + ROWS]
            rows = np.concatenate([some, np.zeros((ROWS - len(some), *some.shape[1:]), some.dtype)])
            pixels.append(np.asarray(run(model.params, rows))[: len(some)])
        return pictures_of(np.concatenate(pixels))

    return decode
