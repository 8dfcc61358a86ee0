"""Derivative of the loss after some steps of training by the logarithm of each multiplier.

It is exact, by forward mode: the steps carry, beside the state, its derivative by each multiplier
(Franceschi et al. 2017, "Forward and Reverse Gradient-Based Hyperparameter Optimization",
https://arxiv.org/abs/1703.01785). The gradient inside a step is differentiated by it too, and so is
the optimizer. Its memory does not grow with the number of steps, and is that of one state more for
each multiplier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxft.engine.state import TrainState
from jaxft.engine.step import Batch, Params, StepInputs

Step = Callable[[TrainState, Params, Batch, StepInputs], tuple[TrainState, Any]]


class Trained(NamedTuple):
    """Parameters after some steps, and their derivatives.

    Attributes:
        trainable: name -> array.
        tangents: name -> `[multipliers, ...]`, the derivative by the logarithm of each multiplier.
    """

    trainable: Params
    tangents: Params


@dataclass(frozen=True)
class Multipliers:
    """Multipliers that are learned, each shared by some leaves.

    Attributes:
        base: `[leaves]` float32, the config's own multipliers, in the order of
            `LayerTable.trainable`.
        index: `[leaves]`, the learned multiplier of each.
        count: how many are learned.
    """

    base: Any
    index: Any
    count: int

    def of_leaves(self, logs: jax.Array) -> jax.Array:
        """Return the multiplier of each leaf: `[leaves]`.

        Args:
            logs: `[count]`, the logarithm of each learned multiplier.
        """
        return self.base * jnp.exp(logs)[self.index]


def trained(
    step: Step,
    multipliers: Multipliers,
    logs: jax.Array,
    state: TrainState,
    frozen: Params,
    batches: Mapping[str, jax.Array],
    rates: jax.Array,
    weight_decay: jax.Array,
) -> Trained:
    """Train for some steps, and differentiate the result by each learned multiplier.

    Args:
        step: a train step that is not jitted (`engine.step.step_function`).
        multipliers: what is learned.
        logs: `[multipliers]`, the logarithm of each.
        state: before the first step.
        frozen: the frozen parameters.
        batches: name -> `[steps, ...]`.
        rates: `[steps, groups]`.
        weight_decay: `[groups]`.
    """

    def run(logs: jax.Array) -> Params:
        each = multipliers.of_leaves(logs)

        def one(state: TrainState, inputs: tuple[Batch, jax.Array]) -> tuple[TrainState, None]:
            batch, rates = inputs
            return step(state, frozen, batch, StepInputs(rates, each, weight_decay))[0], None

        return jax.lax.scan(one, state, (batches, rates))[0].trainable

    def along(direction: jax.Array) -> tuple[Params, Params]:
        return jax.jvp(run, (logs,), (direction,))

    # The steps themselves do not depend on the direction, so they are computed once for all.
    directions = jnp.eye(multipliers.count, dtype=logs.dtype)
    return Trained(*jax.vmap(along, out_axes=(None, 0))(directions))


def derivative(tangents: Params, gradient: Params) -> jax.Array:
    """Compute the derivative of a loss by the logarithm of each multiplier: `[multipliers]`.

    Args:
        tangents: the derivatives of the parameters, as in `Trained`.
        gradient: name -> the loss's derivative by the parameter.
    """
    parts = [
        jnp.tensordot(tangents[name], gradient[name], axes=gradient[name].ndim) for name in gradient
    ]
    return jnp.sum(jnp.stack(parts), axis=0)


def mean_gradient(
    gradient: Callable[[Params, Batch], tuple[tuple[jax.Array, jax.Array], Params]],
    trainable: Params,
    batches: Sequence[Batch],
) -> tuple[jax.Array, Params]:
    """Compute the mean loss over batches, and its gradient.

    Args:
        gradient: `(trainable, batch)` to the loss's sum and weight, and the gradient of the sum.
        trainable: the parameters.
        batches: of the eval rows.
    """
    total: Any = None
    for batch in batches:
        # On CPU devices the small programs below, many at once, could take all of XLA's threads
        # while the gradient's collectives wait for each other.
        one = jax.block_until_ready(gradient(trainable, batch))
        total = one if total is None else jax.tree.map(jnp.add, total, one)
    (loss, weight), gradients = total
    return loss / weight, jax.tree.map(lambda leaf: leaf / weight, gradients)
