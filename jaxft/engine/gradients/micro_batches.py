"""Micro-batches of a step: their rows, keys and summed gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
GRADIENT_VARIANCE, GRADIENT_SQUARE = "gradient_variance", "gradient_square"
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight), the loss under "loss"


@dataclass(frozen=True)
class MicroBatches:
    """Division of a batch into micro-batches.

    Args:
        count: micro-batches.
        rows: the sharding of a batch's rows.
        grows: whether the first micro-batches alone may have examples; the others then take no
            time. How many have some is data: no program is of one number.
    """

    count: int
    rows: jax.sharding.NamedSharding
    grows: bool = False

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

    def over(self, body: Callable[[Any, Any], Any], carry: Any, parts: Batch, *others: Any) -> Any:
        """Fold over the micro-batches that have examples.

        Args:
            body: `(carry, (part, *others))` to the next carry, as in `jax.lax.scan`.
            carry: the first.
            parts: of `split`, with `example_ids` if batches grow.
            others: arrays with the micro-batches first.
        """
        every = (parts, *others)
        if not self.grows:
            return jax.lax.scan(lambda carry, one: (body(carry, one), None), carry, every)[0]

        def turn(number: jax.Array, carry: Any) -> Any:
            return body(carry, jax.tree.map(lambda array: array[number], every))

        ids = parts["example_ids"]
        used = jnp.any(ids >= 0, axis=range(1, ids.ndim)).sum()
        return jax.lax.fori_loop(0, used, turn, carry)

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

    The sums get the two terms of the gradient noise scale: see `noise_terms`.

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

    def add(so_far: Any, part_and_key: Any) -> Any:
        total, squares, used = so_far
        own, sums = gradient(trainable, fixed, *part_and_key)
        weight = sums["loss"][1]
        squares += _square(own) / jnp.maximum(weight, 1e-9)
        return jax.tree.map(jnp.add, total, (own, sums)), squares, used + (weight > 0)

    start = zeros, jnp.zeros(()), jnp.zeros(())
    (gradients, sums), squares, used = micro.over(add, start, parts, keys)
    weight = sums["loss"][1]
    gradients = jax.tree.map(lambda g: g * (1 / weight), gradients)
    return gradients, {**sums, **noise_terms(squares, _square(gradients), weight, used)}


def _square(gradients: Params) -> jax.Array:
    """Compute the squared norm of a gradient, in float32."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)
    return optax.tree.norm(wide, squared=True)


def noise_terms(squares: jax.Array, square: jax.Array, weight: jax.Array, used: jax.Array) -> Sums:
    """Estimate the trace of the gradient's covariance, and the squared norm of the true gradient.

    Both are without bias, and noisy: their ratio is the gradient noise scale once each is averaged
    over steps. With one micro-batch, or none, there is no estimate, and both have no weight.

    Source: McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, appendix A.1, for
    micro-batches of any weight.

    Args:
        squares: sum over micro-batches of the squared norm of the summed loss's gradient, each
            divided by its weight.
        square: squared norm of the gradient of the whole batch's mean loss.
        weight: of the whole batch.
        used: the micro-batches with a weight.

    Returns:
        `gradient_variance`, of an example of weight 1, and `gradient_square`.
    """
    several = (used > 1).astype(jnp.float32)
    variance = (squares - weight * square) / jnp.maximum(used - 1, 1)
    true = square - variance / weight
    return {
        GRADIENT_VARIANCE: (variance * several, several),
        GRADIENT_SQUARE: (true * several, several),
    }
