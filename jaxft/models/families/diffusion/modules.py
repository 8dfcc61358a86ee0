"""Modules of denoisers and autoencoders of images: convolutions, residual blocks, step embeddings.

B images of H x W pixels with C channels, channels last; E is the width of the embedding of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxft.errors import UserError
from jaxft.models.layers.math import dropout
from jaxft.models.layers.modules import Leaf, Linear, parameter
from jaxft.models.layers.vision import Convolution, channels_first
from jaxft.models.weights.names import Name, dense, norm

STD = 0.02  # of a fresh kernel
BELOW = ((0, 1), (0, 1))  # zeros after the last row and column alone


class GroupNorm(nnx.Module):
    """Normalization over the pixels and channels of each group of channels, with scale and bias.

    Args:
        width: C.
        groups: of channels.
        eps: added to the variance.

    Source: Wu and He (2018), https://arxiv.org/abs/1803.08494.
    """

    def __init__(self, width: int, groups: int, eps: float):
        self.scale = parameter(Leaf((width,), ("embed",), mean=1.0, decay=False))
        self.bias = parameter(Leaf((width,), ("embed",), decay=False))
        self.groups, self.eps = groups, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        grouped = x.astype(jnp.float32).reshape(len(x), -1, self.groups, x.shape[-1] // self.groups)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
        normal = ((grouped - mean) * lax.rsqrt(variance + self.eps)).reshape(x.shape)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)


class Residual(nnx.Module):
    """Two normalized convolutions beside a shortcut: [B, H, W, I] -> [B, H, W, O].

    Args:
        inside, outside: I and O.
        step_width: E of the embedding that is added between them; None for none.
        groups, eps: of the norms.
        rate: dropout before the second convolution.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        step_width: int | None,
        groups: int,
        eps: float,
        rate: float = 0.0,
    ):
        self.norm1 = GroupNorm(inside, groups, eps)
        self.conv1 = Convolution(inside, outside)
        self.step = (
            None if step_width is None else Linear(step_width, outside, ("embed", "mlp"), STD)
        )
        self.norm2 = GroupNorm(outside, groups, eps)
        self.conv2 = Convolution(outside, outside)
        self.shortcut = Convolution(inside, outside, 1) if inside != outside else None
        self.rate = rate

    def __call__(
        self, x: jax.Array, step: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        inner = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.step is not None:
            assert step is not None  # of a denoiser
            inner += self.step(jax.nn.silu(step))[:, None, None]
        inner = self.conv2(dropout(jax.nn.silu(self.norm2(inner)), self.rate, key))
        return (x if self.shortcut is None else self.shortcut(x)) + inner


RESIDUAL_NAMES = (
    *norm("norm1", "norm1"),
    *dense("conv1", "conv1"),
    *dense("time_emb_proj", "step"),
    *norm("norm2", "norm2"),
    *dense("conv2", "conv2"),
    *dense("conv_shortcut", "shortcut"),
)


def doubled(x: jax.Array) -> jax.Array:
    """Repeat each pixel twice in both directions: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class StepEmbedding(nnx.Module):
    """Two linear maps of the features of a step, or of another vector: [B, I] -> [B, E].

    Args:
        inside, width: I and E.
    """

    def __init__(self, inside: int, width: int):
        self.up = Linear(inside, width, ("embed", "mlp"), STD)
        self.down = Linear(width, width, ("embed", "mlp"), STD)

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.up(features)))


def step_names(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of a `TimestepEmbedding`."""
    return (*dense(f"{hf}.linear_1", f"{ours}/up"), *dense(f"{hf}.linear_2", f"{ours}/down"))


def sinusoids(steps: jax.Array, width: int, flipped: bool, shift: float) -> jax.Array:
    """Compute sines and cosines of steps: [N] -> [N, width] float32.

    Args:
        steps: numbers, whole or not.
        width: an even number of features.
        flipped: whether the cosines come first.
        shift: subtracted from half the width, by which the frequencies are spaced.

    Source: Ho et al. (2020), https://arxiv.org/abs/2006.11239, after Vaswani et al. (2017).
    """
    half = width // 2
    exponents = -math.log(10_000) * np.arange(half, dtype=np.float32) / (half - shift)
    # A step of 1,000 makes a phase of the last digit: numpy's exp of float32 has fewer right.
    powers = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = steps.astype(jnp.float32)[:, None] * powers
    waves = (jnp.cos(angles), jnp.sin(angles)) if flipped else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, -1)


def grid_sinusoids(width: int, grid: tuple[int, int], base: int) -> np.ndarray:
    """Return fixed positions of a grid, columns before rows: [H W, width] float32.

    Args:
        width: a multiple of 4.
        grid: H and W.
        base: the side of the grid to whose places they are scaled.
    """
    omega = 1.0 / 10_000 ** (np.arange(width // 4) / (width / 4))

    def waves(places: np.ndarray) -> np.ndarray:
        angles = np.outer(places, omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], 1)

    down, across = (np.arange(side, dtype=np.float32) / np.float32(side / base) for side in grid)
    rows, columns = np.meshgrid(down, across, indexing="ij")
    return np.concatenate([waves(columns.ravel()), waves(rows.ravel())], 1).astype(np.float32)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Scale and shift a stream [B, T, D] by [B, D] each."""
    return x * (1 + scale[:, None]) + shift[:, None]


def unpatched(patches: jax.Array, grid: tuple[int, int], side: int) -> jax.Array:
    """Put the pixels of patches side by side: [B, h w, side side C] -> [B, C, H, W] float32.

    Args:
        patches: row by row, each with its channels last.
        grid: h and w.
        side: pixels a side of a patch.
    """
    rows, columns = grid
    x = patches.reshape(len(patches), rows, columns, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    pixels = x.reshape(len(patches), rows * side, columns * side, -1)
    return channels_first(pixels).astype(jnp.float32)


def check_groups(widths: Sequence[int], groups: int) -> None:
    """Raise a UserError unless each number of channels divides into the groups of a norm."""
    for width in widths:
        if width % groups:
            raise UserError(
                f"config.json: block_out_channels {width} does not divide into {groups} groups."
            )
