"""Parts that vision transformers of several kinds share.

B images, N vectors of one, D their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import dropout
from jaxft.models.layers.modules import Keys, Leaf, block_keys, parameter
from jaxft.models.layers.vision import Size, drop_path, resize_grid


def check_image_size(image: tuple[int, ...], wanted: Size) -> None:
    """Raise a UserError unless images have the height and width that learned positions are for."""
    if image != wanted:
        height, width = wanted
        raise UserError(
            f"The images are {image[0]} x {image[1]}; the model takes {height} x {width}.",
            f"Resize them, or set model.image_size={image[0]}.",
        )


class Join(nnx.Module):
    """Residual sum of a branch, which is scaled and, in training, left out of some images.

    Args:
        width: D.
        scale: of a fresh branch; None or 0 for no scale.
        rate: dropout on the branch.
    """

    def __init__(self, width: int, scale: float | None, rate: float):
        leaf = Leaf((width,), ("embed",), mean=scale or 0.0, decay=False)
        self.layer_scale = parameter(leaf) if scale else None
        self.rate = rate

    def __call__(
        self, x: jax.Array, branch: jax.Array, drop: jax.Array | float, keys: Keys
    ) -> jax.Array:
        own, path = keys.split(2)
        branch = dropout(branch, self.rate, own.own)
        branch = branch if self.layer_scale is None else branch * self.layer_scale[...]
        return x + drop_path(branch[:, :, None], drop, path.own)[:, :, 0]


class Block(nnx.Module):
    """Attention, then MLP: [B, N, D] -> [B, N, D]; `drop` is the rate at which each is left out."""

    def __init__(self, attention: Callable[..., jax.Array], mlp: Callable[..., jax.Array]):
        self.attention, self.mlp = attention, mlp

    def __call__(
        self,
        x: jax.Array,
        context: Any,
        key: jax.Array | None,
        cache: BlockCache,
        drop: jax.Array | float,
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        return self.mlp(self.attention(x, context, drop, attention_keys), drop, mlp_keys), cache


def resize_positions(
    stored: np.ndarray, specials: int, old: Size, new: Size, antialias: bool = False
) -> np.ndarray:
    """Resize the positions of patches to another grid, bicubic.

    Args:
        stored: [1, `specials` + the patches of `old`, D].
        specials: positions of tokens that are no patch, which stay.
        old, new: patches down and across.
        antialias: smooth before making a grid smaller.
    """
    grid = resize_grid(stored[0, specials:].reshape(*old, -1), new, antialias)
    return np.concatenate([stored[:, :specials], grid.reshape(1, -1, stored.shape[-1])], axis=1)
