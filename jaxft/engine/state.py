"""What changes from one training step to the next, as one value."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a resumed run needs, and nothing that never changes.

    Frozen parameters are not in it: they go beside it, so that no update, average or checkpoint
    ever sees them.

    Attributes:
        step: updates done so far, int32 scalar; it is also the position in the data.
        trainable: the trained parameters, name -> array.
        opt_state: the optimizer's state for `trainable`.
        key: the key that each step's dropout key is folded from.
        average: the moving average of `trainable` (same names), or None.
        bad_steps: steps in a row whose loss or gradient was not finite, int32 scalar.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: Any
    key: jax.Array
    average: dict[str, jax.Array] | None
    bad_steps: jax.Array


def new_state(
    trainable: dict[str, jax.Array],
    opt_state: Any,
    key: jax.Array,
    average: dict[str, jax.Array] | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        trainable: the parameters to train, name -> array.
        opt_state: what the optimizer's `init` gave for them.
        key: a typed key, `jax.random.key(seed)`.
        average: where the moving average starts, or None for none.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=opt_state,
        key=key,
        average=average,
        bad_steps=jnp.zeros((), jnp.int32),
    )


def abstract(state: TrainState) -> TrainState:
    """The same state as shapes, types and shardings: what a restore needs to know."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
