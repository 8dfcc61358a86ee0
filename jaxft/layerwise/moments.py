"""Moments in few bits: an update rule computes in float32, and its state is rounded for storage.

Rounding is stochastic: up or down with the probabilities that make its mean the number itself.
With rounding to nearest, bfloat16 would lose an average's small changes: at b2 = 0.999 a second
moment changes by up to 0.1% a step, and neighbours in bfloat16 differ by 0.4% to 0.8%. The random
bits depend on the number of updates, the leaf's name and the element alone, so that a resumed run
rounds as the whole one does.

Source: bfloat16, Zamirai et al. (2020), https://arxiv.org/abs/2010.06192; blocks of 8 bits,
Dettmers et al. (2021), https://arxiv.org/abs/2110.02861. As there, vectors stay in float32. A
second moment is never stored on a linear scale of 8 bits: its small elements would become 0, and
their updates without bound.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxft.layerwise.counter_bits import counter_bits
from jaxft.layerwise.rules import Leaves, Rule, Terms

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
FIRST, SECOND = ("mu", "trace"), ("nu",)  # fields of optax's states
BLOCK = 32  # rows of a column that share a scale, at most
LARGEST = 127


class NarrowState(NamedTuple):
    """State of a rule whose moments are in few bits.

    Attributes:
        updates: updates so far, int32 scalar: the key of the rounding.
        rule: the rule's own state; moments of matrices in bfloat16, or the first in int8.
        scales: name -> what each block's int8 is multiplied by, `[..., I / block, O]` float32.
    """

    updates: jax.Array
    rule: Any
    scales: dict[str, jax.Array]


def narrowed(rule: Rule, moments: str) -> Rule:
    """Store a rule's moments in few bits.

    Args:
        rule: one whose state holds moments under the names of `FIRST` and `SECOND`.
        moments: `bfloat16`; or `int8`, the first moment in blocks of int8 and the second in
            bfloat16; or `float32`, the rule as it is.
    """
    if moments == FLOAT32:
        return rule

    def init(params: Leaves) -> NarrowState:
        return _stored(rule.init(params), jnp.zeros((), jnp.int32), moments)

    def update(
        gradients: Leaves, state: NarrowState, params: Leaves, terms: Terms
    ) -> tuple[Leaves, NarrowState]:
        updates, after = rule.update(gradients, _widened(state), params, terms)
        stored = _stored(after, optax.safe_increment(state.updates), moments)
        # What is rounded twice may differ, so a step that is not finite keeps what was stored.
        return updates, terms.guarded(stored, state)

    return Rule(init, update)


def block_rows(rows: int) -> int:
    """Return how many rows share a scale: the largest divisor up to `BLOCK`."""
    return max(n for n in range(1, BLOCK + 1) if rows % n == 0)


def moment_bytes(moments: str, shape: tuple[int, ...], first: int, second: int) -> int:
    """Count the bytes of a leaf's moments.

    Args:
        moments: how they are stored; float32 where the leaf is no matrix.
        shape: the leaf's.
        first, second: how many first and second moments its rule has.
    """
    size = math.prod(shape)
    if moments == FLOAT32 or len(shape) < 2:
        return 4 * size * (first + second)
    scales = 4 * size // block_rows(shape[-2])
    return first * (size + scales if moments == INT8 else 2 * size) + second * 2 * size


def _stored(state: Any, count: jax.Array, moments: str) -> NarrowState:
    """Round the moments of a rule's state."""
    scales: dict[str, jax.Array] = {}

    def store(field: str, name: str, moment: jax.Array) -> jax.Array:
        of_leaf = zlib.crc32(f"{field}/{name}".encode())
        words = jnp.stack([count.astype(jnp.uint32), jnp.uint32(of_leaf)])
        if moments == INT8 and field in FIRST:
            values, scales[name] = to_int8(moment, words)
            return values
        return to_bfloat16(moment, words)

    return NarrowState(count, _mapped(store, state), scales)


def _widened(state: NarrowState) -> Any:
    """Return the rule's state in float32."""

    def widen(field: str, name: str, moment: jax.Array) -> jax.Array:
        if moment.dtype == jnp.int8:
            return from_int8(moment, state.scales[name])
        return moment.astype(jnp.float32)

    return _mapped(widen, state.rule)


def _mapped(function: Callable[[str, str, jax.Array], jax.Array], state: Any) -> Any:
    """Apply a function of (field, name, moment) to the moments of matrices in a state."""

    def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        field = getattr(path[-2], "name", "") if len(path) > 1 else ""
        matrix = field in FIRST + SECOND and leaf.ndim > 1
        return function(field, path[-1].key, leaf) if matrix else leaf

    return jax.tree_util.tree_map_with_path(one, state)


def to_bfloat16(moment: jax.Array, words: jax.Array) -> jax.Array:
    """Round float32 to one of the two neighbours in bfloat16, stochastically.

    Args:
        moment: finite numbers.
        words: [2] uint32, the key.
    """
    bits = lax.bitcast_convert_type(moment, jnp.uint32)
    # The 16 bits that are cut off are the probability of rounding away from 0.
    bits += counter_bits(words, moment.shape) >> 16
    return lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def to_int8(moment: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Round float32 to multiples of the largest of its block / 127, stochastically.

    Args:
        moment: `[..., I, O]`, finite numbers.
        words: [2] uint32, the key.

    Returns:
        `[..., I, O]` int8, and the scale of each block, `[..., I / block, O]` float32.
    """
    scales = jnp.abs(_blocks(moment)).max(-2) * (1 / LARGEST)
    inverse = jnp.where(scales > 0, 1 / jnp.where(scales > 0, scales, 1.0), 0.0)
    scaled = _times(moment, inverse)
    uniform = (counter_bits(words, moment.shape) >> 8).astype(jnp.float32) * 2.0**-24
    return jnp.clip(jnp.floor(scaled + uniform), -LARGEST, LARGEST).astype(jnp.int8), scales


def from_int8(values: jax.Array, scales: jax.Array) -> jax.Array:
    """Return the float32 `[..., I, O]` that `to_int8` stored."""
    return _times(values.astype(jnp.float32), scales)


def _blocks(moment: jax.Array) -> jax.Array:
    """Cut the rows of `[..., I, O]` into blocks: `[..., I / block, block, O]`."""
    *lead, rows, columns = moment.shape
    block = block_rows(rows)
    return moment.reshape(*lead, rows // block, block, columns)


def _times(moment: jax.Array, scales: jax.Array) -> jax.Array:
    """Multiply each block of `[..., I, O]` by its scale."""
    return (_blocks(moment) * scales[..., None, :]).reshape(moment.shape)
