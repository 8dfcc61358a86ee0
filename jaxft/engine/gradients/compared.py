"""Exact gradients of a loss that compares the rows of a batch, by micro-batches.

Source: Gao et al. (2021), https://arxiv.org/abs/2101.06983 (GradCache).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.engine.gradients.micro_batches import Batch, MicroBatches, Params, Sums


@dataclass(frozen=True)
class Compared:
    """Objective of a batch whose rows are compared, in two parts.

    Args:
        represent: parameters, rows and dropout key -> arrays by name, `[rows, ...]` each, on which
            the loss depends.
        compare: parameters, those arrays of all rows, and the batch -> the objective's sums.
    """

    represent: Callable[[Params, Batch, jax.Array | None], dict[str, jax.Array]]
    compare: Callable[[Params, Batch, Batch], Sums]


def compared_gradients(
    objective: Compared,
    micro: MicroBatches,
    trainable: Params,
    fixed: Params,
    batch: Batch,
    key: jax.Array,
) -> tuple[Params, Sums]:
    """Compute the gradients of the mean loss of a whole batch, and its sums.

    A first pass without gradients represents every row; the loss is differentiated by the
    representations; a second pass, with the dropout of the first, differentiates the
    representations of one micro-batch at a time. It costs one more forward pass than a step on
    the whole batch, and the memory of a micro-batch.

    Args:
        objective: the two parts.
        micro: the division of the batch.
        trainable, fixed: the parameters.
        batch: the whole batch.
        key: of the step; each micro-batch gets its own.
    """
    parts, keys = micro.split(batch), micro.keys(key)

    def represent(trainable: Params, part: Batch, key: jax.Array) -> dict[str, jax.Array]:
        return objective.represent({**fixed, **trainable}, part, key)

    def mean_loss(trainable: Params, rows: Batch) -> tuple[jax.Array, Sums]:
        sums = objective.compare({**fixed, **trainable}, rows, batch)
        total, weight = sums["loss"]
        return total / jax.lax.stop_gradient(weight), sums

    def first(carry: None, part_and_key: Any) -> tuple[None, dict[str, jax.Array]]:
        return carry, represent(trainable, *part_and_key)

    def second(total: Params, inputs: Any) -> Params:
        part, own_key, slope = inputs
        _, pull = jax.vjp(lambda leaves: represent(leaves, part, own_key), trainable)
        return jax.tree.map(jnp.add, total, pull(slope)[0])

    # Also where micro-batches have no examples: a loss may divide by the length of a vector.
    _, pieces = jax.lax.scan(first, None, (parts, keys))
    differentiate = jax.grad(mean_loss, argnums=(0, 1), has_aux=True)
    # A scale of the similarities is a parameter that no representation depends on.
    (direct, slopes), sums = differentiate(trainable, micro.join(pieces))
    return micro.over(second, direct, parts, keys, micro.split(slopes)), sums
