"""Latents of images, computed once and cached."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.models.model import Model
from jaxft.tasks.diffusion.examples import Latents, PixelImages
from jaxft.tasks.parts.contract import Batch, Outputs
from jaxft.tasks.parts.frozen_outputs import frozen_outputs
from jaxft.tasks.parts.images import open_image
from jaxft.tasks.parts.tools import Tools


def latents_of(tools: Tools, autoencoder: Model | None, pixels: PixelImages) -> Latents:
    """Return what the denoiser's images are before the noise.

    Args:
        tools: the cache.
        autoencoder: of the pipeline; None where the denoiser works on pixels.
        pixels: the images.
    """
    if autoencoder is None:
        key = pixels.images_fingerprint
        return Latents(tools.once(lambda: (_values(pixels), {}), kind="values", images=key))
    stored = frozen_outputs(tools, autoencoder, pixels, _distribution, kind="latents")
    fields = autoencoder.config.fields
    return Latents(stored, fields["scaling_factor"], fields["shift_factor"] or 0.0)


def _values(pixels: PixelImages) -> Iterator[dict[str, np.ndarray]]:
    """Yield the values of every image."""
    for number, row in pixels.source.each([pixels.column]):
        image = open_image(pixels.source, number, row[pixels.column])
        yield {"mean": pixels.processor(image)[None]}


def _distribution(outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    del batch
    return {"mean": outputs["latent_mean"], "std": jnp.exp(outputs["latent_logvar"] / 2)}
