"""Deformable attention without gathers: each query reads an image at a few points of its own.

A gather at indices of each query's own, and in the backward pass a scatter, is what a TPU does
worst. A point between pixels is the four pixels around it, weighted; here it is a row of weights
over all rows of the image, two of which are not 0, and another over all columns. Their product,
summed over a query's points, is a map of weights over the image, with which one matmul reads it.

B rows, Q queries, H heads, P points of each, R x C pixels, K width of a head.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models.layers.math import matmul_precision
from jaxft.models.layers.modules import Keys, Linear


def line_weights(places: jax.Array, count: int) -> jax.Array:
    """Return the weights of linear interpolation over the pixels of a line: [...] -> [..., count].

    Args:
        places: in 0..1 along the line, float32; what lies outside it is 0.
        count: its pixels.
    """
    at = places * count - 0.5  # in pixels
    first = jnp.floor(at)
    share = (at - first)[..., None]
    pixels = jnp.arange(count, dtype=jnp.float32)
    first = jax.lax.stop_gradient(first)[..., None]
    return jnp.where(pixels == first, 1.0 - share, jnp.where(pixels == first + 1, share, 0.0))


@partial(jax.checkpoint, static_argnums=(3, 4))
def sample(
    image: jax.Array,
    points: jax.Array,
    weights: jax.Array,
    size: tuple[int, int],
    precision: str | None,
) -> jax.Array:
    """Read an image at points between its pixels, and sum over the points of a query.

    The maps of weights are computed again in the backward pass.

    Args:
        image: [B, R C, H, K].
        points: [B, Q, H, P, 2] across and down, in 0..1.
        weights: [B, Q, H, P].
        size: R and C.
        precision: of the matmul.

    Returns:
        [B, Q, H, K].

    Source: `MultiScaleDeformableAttention` of Zhu et al. (2020), https://arxiv.org/abs/2010.04159,
    as bilinear `torch.nn.functional.grid_sample` with zeros outside and `align_corners=False`.
    """
    points, weights = (x.astype(jnp.float32).swapaxes(1, 2) for x in (points, weights))
    across = line_weights(points[..., 0], size[1])  # [B, H, Q, P, C]
    down = line_weights(points[..., 1], size[0]) * weights[..., None]  # [B, H, Q, P, R]
    # One after the other and not as a product over P: XLA computes all of it in one pass.
    each = (down[..., n, :, None] * across[..., n, None, :] for n in range(weights.shape[-1]))
    maps = sum(each, start=jnp.float32(0.0))  # [B, H, Q, R, C]
    maps = maps.reshape(*maps.shape[:3], -1).astype(image.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", maps, image, precision=precision)


def first_offsets(heads: int, points: int) -> np.ndarray:
    """Return fresh offsets: each head looks in a direction of its own, further with each point.

    Args:
        heads, points: H and P.

    Returns:
        [2 H P] float32, the bias of the map that makes offsets.
    """
    angles = np.arange(heads) * (2 * np.pi / heads)
    ways = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ways /= np.abs(ways).max(-1, keepdims=True)
    far = ways[:, None] * np.arange(1, points + 1)[:, None]  # [H, P, 2]
    return far.reshape(-1).astype(np.float32)


class DeformableAttention(nnx.Module):
    """Attention over a few points around a query's box.

    Args:
        width: D of queries and image.
        heads: H.
        points: P of each head.
        std: the standard deviation of fresh kernels.
    """

    def __init__(self, width: int, heads: int, points: int, std: float):
        self.offset = Linear(width, 2 * heads * points, ("embed", "points"), 0.0)
        self.weight = Linear(width, heads * points, ("embed", "points"), 0.0)
        self.value = Linear(width, width, ("embed", "heads"), std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.heads, self.points = heads, points

    def __call__(
        self, x: jax.Array, image: jax.Array, boxes: jax.Array, size: tuple[int, int], keys: Keys
    ) -> jax.Array:
        """Read the image for each query: [B, Q, D].

        Args:
            x: the queries, [B, Q, D].
            image: [B, R C, D].
            boxes: [B, Q, 4] float32, center, width and height as shares of the image.
            size: R and C.
            keys: the dropout keys.
        """
        shape = (*x.shape[:2], self.heads, self.points)
        offset = self.offset(x, keys.block).reshape(*shape, 2).astype(jnp.float32)
        scores = self.weight(x, keys.block).reshape(shape).astype(jnp.float32)
        center, extent = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
        points = center + offset / self.points * extent * 0.5
        value = self.value(image, keys.block)
        value = value.reshape(*value.shape[:2], self.heads, -1)
        weights = jax.nn.softmax(scores, axis=-1)
        mixed = sample(value, points, weights, size, matmul_precision())
        return self.output(mixed.reshape(x.shape), keys.block)
