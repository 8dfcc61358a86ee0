"""What changes from one training step to the next, as one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.device.mesh import replicated


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
        average: what is scored in place of `trainable` (same names): their moving average, or
            that of a schedule-free rule; None where neither is asked for.
        settled: the parameters that an earlier phase trained and this one does not, in float32.
        bad_steps: steps in a row whose loss or gradient was not finite, int32 scalar.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: Any
    key: jax.Array
    average: dict[str, jax.Array] | None
    settled: dict[str, jax.Array]
    bad_steps: jax.Array


def fresh_state(
    trainable: Mapping[str, jax.Array],
    settled: Mapping[str, jax.Array] | None = None,
    *,
    optimizer: optax.GradientTransformation,
    seed: int,
    averages: bool = False,
) -> TrainState:
    """Make the state before the first step: fresh moments, float32 parameters.

    Args:
        trainable: name -> array.
        settled: see `TrainState`.
        optimizer: of `trainable`.
        seed: of dropout.
        averages: keep an average, which begins at `trainable`.
    """
    params = {name: leaf.astype(jnp.float32) for name, leaf in trainable.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=params,
        opt_state=optimizer.init(params),
        key=jax.random.key(seed),
        average=jax.tree.map(jnp.copy, params) if averages else None,
        settled={name: leaf.astype(jnp.float32) for name, leaf in (settled or {}).items()},
        bad_steps=jnp.zeros((), jnp.int32),
    )


def place_state(
    state: TrainState,
    shardings: Mapping[str, jax.sharding.NamedSharding],
    mesh: jax.sharding.Mesh,
) -> Any:
    """Find the sharding of each leaf: moments and average lie as their parameter does.

    Args:
        state: arrays, or their shapes.
        shardings: name -> where the parameter lies.
        mesh: on which all else lies whole.
    """
    shapes = {name: leaf.shape for name, leaf in {**state.settled, **state.trainable}.items()}
    whole = replicated(mesh)

    def place(path: tuple[Any, ...], leaf: Any) -> jax.sharding.NamedSharding:
        # The parameters' dict is flat, so a leaf's own name is the last key on its path.
        name = str(getattr(path[-1], "key", ""))
        return shardings[name] if leaf.shape == shapes.get(name) else whole

    return jax.tree_util.tree_map_with_path(place, state)
