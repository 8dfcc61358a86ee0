"""Keys and values of the positions before, kept so that a new position costs one position.

B batch, T new positions, S slots for positions, H heads, G heads of keys and values, K width.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.layers.math import soft_capped


@dataclass
class KeyValues:
    """One block's keys and values, for as long as the block is traced.

    It is the one thing here that changes in place: a block takes and gives a stream, and what it
    adds to its keys and values is picked up here by whoever called it.

    Args:
        slots: how many positions there is room for, S.
        slot: where the new position goes, an int32; None at the start of a text.
        key, value: [B G, S, K]; None at the start of a text. With rows and heads on one axis they
            are what the products read: with two, XLA:CPU would make a copy for each reader.
    """

    slots: int
    slot: jax.Array | None = None
    key: jax.Array | None = None
    value: jax.Array | None = None

    def add(self, key: jax.Array, value: jax.Array) -> None:
        """Put in the keys and values of new positions, each [B, G, T, K]."""
        self.key = self._with(self.key, key)
        self.value = self._with(self.value, value)

    def arrays(self) -> tuple[jax.Array, jax.Array]:
        """Keys and values of all positions so far, each [B G, S, K]."""
        assert self.key is not None and self.value is not None  # noqa: PT018 - one fact
        return self.key, self.value

    def _with(self, kept: jax.Array | None, new: jax.Array) -> jax.Array:
        new = new.reshape(-1, *new.shape[2:])  # [B G, T, K]
        if kept is None or self.slot is None:
            return jnp.pad(new, ((0, 0), (0, self.slots - new.shape[1]), (0, 0)))
        return lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), self.slot, axis=1)


def split_heads(x: jax.Array, width: int) -> jax.Array:
    """[B, T, G K] -> [B, G, T, K]: heads first, so that products are plain batched matmuls."""
    return x.reshape(*x.shape[:2], -1, width).transpose(0, 2, 1, 3)


def attend(
    query: jax.Array, kept: KeyValues, bias: jax.Array, soft_cap: float | None = None
) -> jax.Array:
    """Softmax attention of new positions over all that is kept.

    The heads that share keys are rows of one product, so the keys are read once and never
    repeated.

    Args:
        query: [B, H, T, K], scaled.
        kept: the keys and values, the new positions' own among them.
        bias: what to add to the scores, [B or 1, 1, T, S].
        soft_cap: what no score goes beyond, either way; None for none.

    Returns:
        [B, H, T, K].
    """
    key, value = kept.arrays()
    batch, heads, length, width = query.shape
    rows = query.reshape(len(key), -1, width)  # [B G, H T / G, K]
    scores = jnp.einsum("nrk,nsk->nrs", rows, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, -1)
    scores = scores + bias if soft_cap is None else soft_capped(scores, soft_cap) + bias
    weights = jax.nn.softmax(scores).astype(query.dtype)
    weights = weights.reshape(*rows.shape[:2], -1)
    return jnp.einsum("nrs,nsk->nrk", weights, value).reshape(query.shape)
