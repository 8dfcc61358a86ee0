"""Patches of SigLIP 2's images, which keep their proportions: positions on each image's own grid.

B images, N patches of the largest, G patches on a side of the stored grid.

Source: Tschannen et al. (2025), https://arxiv.org/abs/2502.14786, section 2.4.2; the computation
follows `transformers`' `modeling_siglip2.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers.attention import HIDDEN, Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.modules import Embedding, Linear
from jaxft.models.layers.vision import Size, grid_of

STD = 0.02  # of fresh kernels


def patches_of(pixels: jax.Array, patch: Size) -> jax.Array:
    """Cut images [B, C, H, W] into patches [B, N, P P C], row by row; a part of one is cut off."""
    count, channels = pixels.shape[:2]
    rows, columns = grid_of(pixels.shape[2:], patch)
    if min(rows, columns) < 1:
        size = f"{pixels.shape[2]} x {pixels.shape[3]}"
        raise UserError(f"The images are {size}, smaller than a patch.")
    x = pixels[:, :, : rows * patch[0], : columns * patch[1]]
    x = x.reshape(count, channels, rows, patch[0], columns, patch[1])
    return x.transpose(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)


def grid_weights(shapes: Any, length: int, side: int) -> jax.Array:
    """Compute what each patch takes of each position of a square grid: [B, N, G G] float32.

    They resize the grid bilinearly to each image's own, smoothed where that is smaller. What is
    behind the last patch of an image has the position of its first.

    Args:
        shapes: patches down and across of each image, [B, 2].
        length, side: N and G.
    """
    sizes = jnp.asarray(shapes, jnp.float32)[:, None]  # [B, 1, 2]
    number = np.arange(length, dtype=np.float32)[None, :, None]
    rows = jnp.floor(number / sizes[..., 1:])
    places = jnp.concatenate([rows, number - rows * sizes[..., 1:]], axis=-1)  # [B, N, 2]
    places = places * (number < sizes.prod(-1, keepdims=True))
    step = side / sizes
    reach = jnp.maximum(step, 1.0)[..., None]
    centers = ((places + 0.5) * step - 0.5)[..., None]
    weights = jnp.maximum(1 - jnp.abs(np.arange(side, dtype=np.float32) - centers) / reach, 0)
    weights = weights / weights.sum(-1, keepdims=True)  # [B, N, 2, G]
    both = weights[..., 0, :, None] * weights[..., 1, None, :]
    return both.reshape(*both.shape[:2], side * side)


def padding_mask(batch: Batch) -> Mask | None:
    """Return the mask under which all see an image's patches alone; None where all are patches."""
    patches = batch.get("pixel_attention_mask")
    if patches is None:
        return None
    hidden = patches[:, None, None, :] == 0
    bias = jnp.where(hidden, HIDDEN, 0.0).astype(jnp.float32)  # [B, 1, 1, N]
    return replace(make_mask(jnp.ones(patches.shape, jnp.int32)), bias=bias)


class NaflexEmbeddings(nnx.Module):
    """Patches with positions: [B, N, D].

    Args:
        fields: of the tower's config.
        patch: height and width of a patch.
    """

    def __init__(self, fields: Mapping[str, Any], patch: Size):
        width, self.channels = fields["hidden_size"], fields["num_channels"]
        inside = self.channels * math.prod(patch)
        self.position = Embedding(fields["num_patches"], width, "positions", STD, decay=False)
        self.patch = Linear(inside, width, ("patch", "embed"), STD)
        self.size, self.side = patch, math.isqrt(fields["num_patches"])

    def __call__(self, batch: Batch) -> jax.Array:
        """Embed images of one size, or patches with the grid of each image.

        Args:
            batch: `pixel_values` [B, C, H, W]; or [B, N, P P C] and `spatial_shapes` [B, 2].

        Raises:
            UserError: the images have another number of channels, or are smaller than a patch.
        """
        pixels = batch["pixel_values"]
        if pixels.ndim == 4:
            if pixels.shape[1] != self.channels:
                raise UserError(
                    f"The images have {pixels.shape[1]} channels; the model takes {self.channels}."
                )
            shapes: Any = np.array([grid_of(pixels.shape[2:], self.size)])
            pixels = patches_of(pixels, self.size)
        else:
            shapes = batch["spatial_shapes"]
        table = self.position.embedding[...]
        weights = grid_weights(shapes, pixels.shape[1], self.side)
        with jax.default_matmul_precision("highest"):
            positions = (weights @ table.astype(jnp.float32)).astype(table.dtype)
        return self.patch(pixels.astype(table.dtype)) + positions
