"""Micro-batches of a step: their rows, keys and summed gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight), the loss under "loss"


@dataclass(frozen=True)
class MicroBatches:
    """Division of a batch into micro-batches.

    Args:
        count: micro-batches.
        rows: the sharding of a batch's rows.
    """

    count: int
    rows: jax.sharding.NamedSharding

    def split(self, arrays: Batch) -> dict[str, jax.Array]:
        """Divide arrays of a batch: `[R, ...] -> [count, R / count, ...]` each.

        Row i * count + k goes to micro-batch k, so that every device keeps its own rows.
        """
        return {name: self._split(array) for name, array in arrays.items()}

    def _split(self, array: jax.Array) -> jax.Array:
        split = array.reshape(array.shape[0] // self.count, self.count, *array.shape[1:])
        spec = jax.sharding.PartitionSpec(None, *self.rows.spec)
        moved = jnp.moveaxis(split, 1, 0)
        return jax.lax.with_sharding_constraint(
            moved, jax.sharding.NamedSharding(self.rows.mesh, spec)
        )

    def join(self, arrays: Batch) -> dict[str, jax.Array]:
        """Put the arrays of micro-batches together in the order of the batch's rows."""
        return {
            name: jax.lax.with_sharding_constraint(
                jnp.moveaxis(array, 0, 1).reshape(-1, *array.shape[2:]), self.rows
            )
            for name, array in arrays.items()
        }

    def keys(self, key: jax.Array) -> jax.Array:
        """Return the dropout key of each micro-batch."""
        return jax.random.split(key, self.count)


def accumulated(
    gradient: Callable[..., tuple[Params, Sums]],
    micro: MicroBatches,
    trainable: Params,
    fixed: Params,
    batch: Batch,
    key: jax.Array,
) -> tuple[Params, Sums]:
    """Sum the gradients of micro-batches, and divide them by the weight of the whole batch.

    Args:
        gradient: `(trainable, fixed, batch, key)` to the gradients of the summed loss, and the
            objective's sums.
        micro: the division of the batch.
        trainable, fixed: the parameters.
        batch: the whole batch.
        key: of the step; each micro-batch gets its own.
    """
    parts, keys = micro.split(batch), micro.keys(key)
    first = jax.tree.map(lambda array: array[0], parts)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(gradient, trainable, fixed, first, keys[0]),
    )

    def add(total: Any, part_and_key: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(trainable, fixed, *part_and_key)), None

    (gradients, sums), _ = jax.lax.scan(add, zeros, (parts, keys))
    share = 1 / sums["loss"][1]
    return jax.tree.map(lambda g: g * share, gradients), sums
