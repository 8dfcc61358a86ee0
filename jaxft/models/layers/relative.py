"""Learned relative positions, added to the attention scores by distance.

H heads, T positions, S source positions.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models.layers.modules import Leaf, parameter


class RelativePositions(nnx.Module):
    """Table of a score for each head and bucket of distances; far distances share a bucket.

    Args:
        buckets: how many there are.
        furthest: from that distance on there is one bucket.
        heads: H.
        std: the standard deviation of a fresh table.
        both_ways: whether a position sees those after it too; half of the buckets are theirs.

    Source: Raffel et al. (2020), https://arxiv.org/abs/1910.10683, section 2.1.
    """

    def __init__(self, buckets: int, furthest: int, heads: int, std: float, both_ways: bool):
        leaf = Leaf((buckets, heads), ("positions", "heads"), std=std, decay=False)
        self.embedding = parameter(leaf)
        self.buckets, self.furthest, self.both_ways = buckets, furthest, both_ways

    def __call__(self, length: int, slot: jax.Array | None = None) -> jax.Array:
        """Score `length` positions, or the one at `slot` among them: [H, T, S]."""
        places = jnp.arange(length, dtype=jnp.int32)
        own = places if slot is None else slot[None]
        back = own[:, None] - places  # [T, S], how far the other lies before
        table = bucket_table(self.buckets, self.furthest, self.both_ways)
        buckets = jnp.asarray(table)[jnp.clip(back, -self.furthest, self.furthest) + self.furthest]
        return self.embedding[...][buckets].transpose(2, 0, 1)


def bucket_table(buckets: int, furthest: int, both_ways: bool) -> np.ndarray:
    """Return the bucket of each distance, from -`furthest` (after) to `furthest` (before).

    Args:
        buckets, furthest, both_ways: as `RelativePositions` has them.

    Returns:
        [2 furthest + 1] int32. Half of the buckets of a side are of one distance each, the
        others grow with it.
    """
    back = np.arange(-furthest, furthest + 1)
    side = buckets // 2 if both_ways else buckets
    distance = np.abs(back) if both_ways else np.maximum(back, 0)
    exact = side // 2
    # In float32 throughout, as the reference has it: a distance on an edge falls to its side.
    grown = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    grown = grown / np.float32(math.log(furthest / exact)) * np.float32(side - exact)
    far = np.minimum(exact + grown.astype(np.int32), side - 1)
    bucket = np.where(distance < exact, distance, far)
    return (bucket + np.where(both_ways & (back < 0), side, 0)).astype(np.int32)
