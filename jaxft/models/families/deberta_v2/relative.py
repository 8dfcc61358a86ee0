"""Relative positions of DeBERTa: buckets of distances, and scores moved from distance to position.

T positions; the distance of key j from query i is i - j, which is one of 2 T - 1.

Scores are formed for each distance by one product and then moved to their keys by reshaping: what
a key's score is depends on i - j alone, so that no gather over T x T is needed, which a TPU has no
fast instruction for. This is done for blocks of queries, which have T + QUERIES distances to the
keys and not 2 T - 1: nearly half of the products, of the memory and of the time to compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# The most queries of a block: the lanes of a TPU's registers. With 64 a step of 64 x 512 tokens on
# v5e:2x2 has 0.4 GB more temporaries.
QUERIES = 128


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


def distances_of_blocks(rows: jax.Array, length: int, queries: int) -> jax.Array:
    """Gather the rows of the distances that each block of C queries has to T keys.

    Args:
        rows: [2 T - 1, W], for the distances from T - 1 down to 1 - T.
        length: T.
        queries: C, at most T.

    Returns:
        [N, T + C, W], of N = ceil(T / C) blocks, for the distances from that of a block's last
        query to the first key down to that of its first query to the last key, and one row that
        no query uses.
    """
    blocks = -(-length // queries)
    rows = jnp.pad(rows, ((blocks * queries - length, 1), (0, 0)))
    starts = range((blocks - 1) * queries, -1, -queries)
    return jnp.stack([rows[start : start + length + queries] for start in starts])


def skew(scores: jax.Array) -> jax.Array:
    """Move scores of C queries by distance to T keys: [..., C, T + C] -> [..., C, T].

    Entry (i, j) of the result is entry (i, j - i + C - 1).

    Source: Huang et al. (2018), https://arxiv.org/abs/1809.04281, section 3.4.1.
    """
    *outer, queries, distances = scores.shape
    flat = scores.reshape(*outer, queries * distances)
    shifted = flat[..., queries - 1 : queries - 1 + queries * (distances - 1)]
    return shifted.reshape(*outer, queries, distances - 1)[..., : distances - queries]


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
    total, length = jnp.zeros((), query.dtype), query.shape[1]
    queries = -(-length // -(-length // QUERIES))  # of blocks as equal as they can be
    if distance_keys is not None:
        total = _by_distance(query, distance_keys, heads, queries)
    if distance_queries is not None:
        # Of a key: its distances to queries begin with the first one, so they are in turn.
        total = total + _by_distance(key, distance_queries[::-1], heads, queries).swapaxes(-1, -2)
    return total


@partial(jax.checkpoint, static_argnums=(2, 3))  # the rows of blocks are gathered again, not saved
def _by_distance(x: jax.Array, rows: jax.Array, heads: int, queries: int) -> jax.Array:
    """Multiply [B, T, H K] with the rows [2 T - 1, H K] of its distances: [B, H, T, T]."""
    batch, length, _ = x.shape
    rows = distances_of_blocks(rows, length, queries)
    blocks, columns, width = rows.shape
    x = jnp.pad(x, ((0, 0), (0, blocks * queries - length), (0, 0)))
    x = x.reshape(batch, blocks, queries, heads, width // heads)
    rows = rows.reshape(blocks, columns, heads, width // heads)
    scores = skew(jnp.einsum("bnchk,ndhk->bhncd", x, rows))
    return scores.reshape(batch, heads, blocks * queries, length)[:, :, :length]
