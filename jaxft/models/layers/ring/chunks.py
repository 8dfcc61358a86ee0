"""Attention of a chunk of queries to a chunk of keys, as a part of one softmax over several.

B rows, G heads of keys and values, M heads of queries for each, T queries, S keys, K width of a
head. Scores exist for some keys at a time only, in the forward and in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.layers.math import soft_capped

HIDDEN = -1e9  # finite, so that no row of scores is ever empty
MOST_SCORES = 2**26  # of a device at once, in float32 256 MiB; as few keys at a time as that takes


class Queries(NamedTuple):
    """Queries of a chunk: [B, G, M, T, K], scaled, and their segments, [B, T] int32."""

    query: jax.Array
    segments: jax.Array


class Keys(NamedTuple):
    """Keys and values of a chunk, [B, G, S, K] each, and their segments, [B, S] int32."""

    key: jax.Array
    value: jax.Array
    segments: jax.Array


class Mixed(NamedTuple):
    """Part of attention: [B, G, M, T, K] float32, and the logarithm of its sum of exponentials.

    The latter is [B, G, M, T] float32; where nothing is seen, it is so low that the part has no
    weight among others.
    """

    out: jax.Array
    log_sum: jax.Array


class Slope(NamedTuple):
    """Gradient of what a chunk of queries gives, for the backward pass.

    Args:
        d_out: [B, G, M, T, K].
        log_sum: of all keys that they see, [B, G, M, T] float32.
        shared: the product of output and gradient, [B, G, M, T] float32.
    """

    d_out: jax.Array
    log_sum: jax.Array
    shared: jax.Array


@dataclass(frozen=True)
class Sight:
    """Positions of a chunk of keys that a chunk of queries sees, within a segment.

    Args:
        distance: how many positions the first query lies behind the first key; None where all
            see all.
        causal: a position sees itself and those before it only.
        window: it sees that many positions back, itself included, and as many ahead where the mask
            is not causal; None for all.
    """

    distance: int | None = None
    causal: bool = False
    window: int | None = None


EVERYTHING = Sight()


@dataclass(frozen=True)
class ByXla:
    """Attention of chunks by XLA, some keys at a time.

    Args:
        soft_cap: bound of the scores; None for none.
        precision: of the products.
    """

    soft_cap: float | None
    precision: str | None

    def forward(self, queries: Queries, keys: Keys, sight: Sight) -> Mixed:
        """Attend from a chunk to a chunk."""
        query = queries.query

        def add(so_far: Any, block: Any) -> tuple[Any, None]:
            out, top, total = so_far
            own, first = block
            scores, _ = self._scores(queries, own, first, sight)
            higher = jnp.maximum(top, scores.max(-1))
            powers = jnp.exp(scores - higher[..., None])
            rest = jnp.exp(top - higher)
            mixed = self._product("bgmts,bgsk->bgmtk", powers.astype(query.dtype), own.value)
            out = out * rest[..., None] + mixed
            return (out, higher, total * rest + powers.sum(-1)), None

        none = jnp.zeros(query.shape[:-1], jnp.float32)
        start = jnp.zeros(query.shape, jnp.float32), none + HIDDEN, none
        (out, top, total), _ = _over_blocks(add, start, queries, keys)
        return Mixed(out / total[..., None], top + jnp.log(total))

    def backward(
        self, queries: Queries, keys: Keys, slope: Slope, sight: Sight
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Compute the gradients of queries, and of keys and values, in float32."""
        query = queries.query

        def add(d_query: jax.Array, block: Any) -> tuple[jax.Array, Any]:
            own, first = block
            scores, capped = self._scores(queries, own, first, sight)
            weights = jnp.exp(scores - slope.log_sum[..., None])
            narrow = weights.astype(query.dtype)
            d_value = self._product("bgmts,bgmtk->bgsk", narrow, slope.d_out)
            d_weights = self._product("bgmtk,bgsk->bgmts", slope.d_out, own.value)
            d_scores = weights * (d_weights - slope.shared[..., None])
            if self.soft_cap is not None:  # the slope of tanh
                d_scores *= 1.0 - jnp.square(capped / self.soft_cap)
            d_scores = d_scores.astype(query.dtype)
            d_key = self._product("bgmts,bgmtk->bgsk", d_scores, query)
            return d_query + self._product("bgmts,bgsk->bgmtk", d_scores, own.key), (d_key, d_value)

        start = jnp.zeros(query.shape, jnp.float32)
        d_query, per_block = _over_blocks(add, start, queries, keys)
        d_key, d_value = (_joined(each, axis=2) for each in per_block)
        return d_query, (d_key, d_value)

    def _scores(
        self, queries: Queries, block: Keys, first: jax.Array, sight: Sight
    ) -> tuple[jax.Array, jax.Array]:
        """Score some keys, of which `first` is the number of the first: with and without mask."""
        scores = self._product("bgmtk,bgsk->bgmts", queries.query, block.key)
        scores = scores if self.soft_cap is None else soft_capped(scores, self.soft_cap)
        visible = queries.segments[:, :, None] == block.segments[:, None, :]  # [B, T, S]
        if sight.distance is not None:
            back = sight.distance - first + _behind(*visible.shape[1:])
            visible &= (back >= 0) if sight.causal else True
            if sight.window is not None:
                visible &= (back if sight.causal else jnp.abs(back)) < sight.window
        return jnp.where(visible[:, None, None], scores, HIDDEN), scores

    def _product(self, letters: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(
            letters, left, right, precision=self.precision, preferred_element_type=jnp.float32
        )


def _behind(queries: int, keys: int) -> jax.Array:
    """Return how far each query lies behind each key, were the first ones at one position."""
    places = (jnp.arange(count, dtype=jnp.int32) for count in (queries, keys))
    own, others = places
    return own[:, None] - others[None, :]


def _over_blocks(
    add: Callable[[Any, Any], tuple[Any, Any]], start: Any, queries: Queries, keys: Keys
) -> tuple[Any, Any]:
    """Scan over blocks of the keys; each is passed with the number of its first key."""
    length = keys.key.shape[2]
    size = _block_size(queries.query[..., 0].size, length)
    count = length // size
    blocks = Keys(*(_cut(x, count, axis) for x, axis in zip(keys, (2, 2, 1), strict=True)))
    firsts = jnp.arange(count, dtype=jnp.int32) * size
    return lax.scan(add, start, (blocks, firsts))


def _block_size(queries: int, length: int) -> int:
    """Return how many keys are scored at a time: the most that divide `length` and fit."""
    counts = (count for count in range(1, length + 1) if length % count == 0)
    sizes = [length // count for count in counts]
    return next((size for size in sizes if size * queries <= MOST_SCORES), 1)


def _cut(x: jax.Array, count: int, axis: int) -> jax.Array:
    """Cut an axis into `count` equal parts, which come first."""
    parts = x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)


def _joined(parts: jax.Array, axis: int) -> jax.Array:
    """Undo `_cut`."""
    back = jnp.moveaxis(parts, 0, axis)
    return back.reshape(*back.shape[:axis], -1, *back.shape[axis + 2 :])
