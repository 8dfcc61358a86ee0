"""Relative positions of DeBERTa: buckets of distances, and scores moved from distance to position.

T positions; the distance of key j from query i is i - j, which is one of 2 T - 1.

Scores are formed for each distance by one product and then moved to their keys by padding and
reshaping: what a key's score is depends on i - j alone, so that no gather over T x T is needed,
which a TPU has no fast instruction for.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Buckets:
    """Buckets of distances, each with a row in a table of `2 span` rows.

    Args:
        span: rows for each side.
        furthest: the distance that the last bucket of a side is for.
        grow: whether far distances share a bucket, by their logarithm; else each has its own, up
            to the last.
    """

    span: int
    furthest: int
    grow: bool

    def rows(self, length: int) -> np.ndarray:
        """Return the row of each distance of two of T = `length` positions.

        Returns:
            [2 T - 1] int32, for the distances T - 1 (of the last query from the first key) down
            to 1 - T.
        """
        distances = np.arange(length - 1, -length, -1)
        buckets = log_buckets(distances, self.span, self.furthest) if self.grow else distances
        return np.clip(buckets + self.span, 0, 2 * self.span - 1).astype(np.int32)


def log_buckets(distances: np.ndarray, count: int, furthest: int) -> np.ndarray:
    """Return signed buckets: a distance itself up to half of `count`, then by its logarithm.

    In float32 throughout, as the reference has it: a distance on an edge falls to its side.

    Source: He et al. (2020), https://arxiv.org/abs/2006.03654; the logarithm is v2's, of
    https://github.com/microsoft/DeBERTa.
    """
    half = count // 2
    size = np.abs(distances)
    grown = np.log(np.maximum(size, half).astype(np.float32) / np.float32(half))
    grown = grown / np.log(np.float32((furthest - 1) / half)) * np.float32(half - 1)
    far = np.sign(distances) * (np.ceil(grown).astype(np.int64) + half)
    return np.where(size <= half, distances, far)


def skew(scores: jax.Array) -> jax.Array:
    """Move scores by distance to positions: [..., T, 2 T - 1] -> [..., T, T].

    Entry (i, j) of the result is entry (i, j - i + T - 1).

    Source: Huang et al. (2018), https://arxiv.org/abs/1809.04281, section 3.4.1.
    """
    *outer, length, distances = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(outer) + 1) + [(0, 1)])
    flat = padded.reshape(*outer, length * (distances + 1))
    shifted = flat[..., length - 1 : length - 1 + length * distances]
    return shifted.reshape(*outer, length, distances)[..., :length]


def relative_scores(
    query: jax.Array,
    key: jax.Array,
    distance_keys: jax.Array | None,
    distance_queries: jax.Array | None,
    heads: int,
) -> jax.Array:
    """Score queries with the keys of distances, and keys with the queries of distances.

    Args:
        query, key: [B, T, H K].
        distance_keys, distance_queries: [2 T - 1, H K], from T - 1 down to 1 - T, scaled; None
            where such scores are not part of the model.
        heads: H.

    Returns:
        [B, H, T, T], of each query with each key.
    """
    total = jnp.zeros((), query.dtype)
    if distance_keys is not None:
        total = skew(_by_distance(query, distance_keys, heads))
    if distance_queries is not None:
        # Of a key: its distances to queries begin with the first one, so they are in turn.
        scores = skew(_by_distance(key, distance_queries[::-1], heads))
        total = total + scores.swapaxes(-1, -2)
    return total


def _by_distance(x: jax.Array, rows: jax.Array, heads: int) -> jax.Array:
    """Multiply [B, T, H K] with rows [2 T - 1, H K], head by head: [B, H, T, 2 T - 1]."""
    x = x.reshape(*x.shape[:-1], heads, -1)
    return jnp.einsum("bthk,dhk->bhtd", x, rows.reshape(rows.shape[0], heads, -1))
