"""The key-value cache of a block: an argument and a result, so that a new position costs one.

B batch, T new positions, S slots for positions, H heads, G heads of keys and values, K width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.layers.loss import Routed
from jaxft.models.layers.math import soft_capped


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one attention, for all positions so far.

    Args:
        slots: how many positions there is room for, S.
        slot: where the new position goes, an int32; None at the start of a text.
        key, value: [B G, S, K]; None at the start of a text. With rows and heads on one axis they
            are what the products read: with two, XLA:CPU would make a copy for each reader.
    """

    slots: int = field(metadata={"static": True})
    slot: jax.Array | None = None
    key: jax.Array | None = None
    value: jax.Array | None = None

    def add(self, key: jax.Array, value: jax.Array) -> KeyValues:
        """Return the cache with the keys and values of new positions, each [B, G, T, K]."""
        return replace(self, key=self._with(self.key, key), value=self._with(self.value, value))

    def arrays(self) -> tuple[jax.Array, jax.Array]:
        """Return keys and values of all positions so far, each [B G, S, K]."""
        assert self.key is not None and self.value is not None  # noqa: PT018 - one fact
        return self.key, self.value

    def _with(self, cached: jax.Array | None, new: jax.Array) -> jax.Array:
        new = new.reshape(-1, *new.shape[2:])  # [B G, T, K]
        if cached is None or self.slot is None:
            return jnp.pad(new, ((0, 0), (0, self.slots - new.shape[1]), (0, 0)))
        return lax.dynamic_update_slice_in_dim(cached, new.astype(cached.dtype), self.slot, axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockCache:
    """Cache of one block: every block takes one and returns it, an encoder's as it is.

    Args:
        own: of its self-attention; None where nothing is cached.
        source: of its attention over a source; None where it reads none, or nothing is cached.
        routed: what a block gives besides: the use of its experts; None where nothing asks for it.
    """

    own: KeyValues | None = None
    source: KeyValues | None = None
    routed: Routed | None = None

    @property
    def slot(self) -> jax.Array | None:
        """Return the slot of the one new position among the cached, an int32; None at the start."""
        return None if self.own is None else self.own.slot


UNCACHED = BlockCache()


def split_heads(x: jax.Array, width: int) -> jax.Array:
    """Split [B, T, G K] into [B, G, T, K]: heads first, for plain batched matmuls."""
    return x.reshape(*x.shape[:2], -1, width).transpose(0, 2, 1, 3)


def attend(
    query: jax.Array,
    cache: KeyValues,
    bias: jax.Array,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attend from new positions over all cached ones, by softmax.

    The heads that share keys are rows of one product, so the keys are read once and never
    repeated.

    Args:
        query: [B, H, T, K], scaled.
        cache: the keys and values, the new positions' own among them.
        bias: what to add to the scores, [B or 1, 1, T, S].
        soft_cap: what no score goes beyond, either way; None for none.
        sinks: [H], a score of each head that joins its softmax; None for none.

    Returns:
        [B, H, T, K].
    """
    key, value = cache.arrays()
    batch, heads, length, width = query.shape
    rows = query.reshape(len(key), -1, width)  # [B G, H T / G, K]
    scores = jnp.einsum("nrk,nsk->nrs", rows, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, -1)
    scores = scores + bias if soft_cap is None else soft_capped(scores, soft_cap) + bias
    if sinks is not None:
        sink = jnp.broadcast_to(
            sinks.astype(scores.dtype)[:, None, None], (batch, heads, length, 1)
        )
        scores = jnp.concatenate([scores, sink], -1)
    weights = jax.nn.softmax(scores).astype(query.dtype)[..., : key.shape[1]]
    weights = weights.reshape(*rows.shape[:2], -1)
    return jnp.einsum("nrs,nsk->nrk", weights, value).reshape(query.shape)
