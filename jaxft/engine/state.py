"""Training state, and where its leaves lie on the mesh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.device.host_memory import HOST
from jaxft.device.mesh import replicated
from jaxft.runs.leaves import STORED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Training state: everything that changes from step to step, and nothing else.

    Frozen parameters are an argument of their own, so that no update, average or checkpoint
    includes them.

    Attributes:
        step: updates done so far, int32 scalar; it is also the position in the data.
        trainable: the trained parameters, name -> array.
        opt_state: the optimizer's state for `trainable`.
        key: each step folds its number into this key for dropout.
        average: scored in place of `trainable` (same names): their moving average, or that of a
            schedule-free rule; None without either.
        previously_trained: the parameters that an earlier phase trained and this one does not, in
            float32; stored as `settled`.
        bad_steps: consecutive steps whose loss or gradient was not finite, int32 scalar.
        idle: the optimizer's state of sampled blocks that do not train now, on the host: block ->
            leaf -> array. No step reads it.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: Any
    key: jax.Array
    average: dict[str, jax.Array] | None
    previously_trained: dict[str, jax.Array] = dataclasses.field(metadata={STORED: "settled"})
    bad_steps: jax.Array
    idle: dict[str, dict[str, jax.Array]] = dataclasses.field(default_factory=dict)


def fresh_state(
    trainable: Mapping[str, jax.Array],
    previously_trained: Mapping[str, jax.Array] | None = None,
    *,
    optimizer: optax.GradientTransformation,
    seed: int,
    averages: bool = False,
) -> TrainState:
    """Make the state before the first step: fresh moments, float32 parameters.

    Args:
        trainable: name -> array.
        previously_trained: see `TrainState`.
        optimizer: of `trainable`.
        seed: of dropout.
        averages: keep an average, with `trainable` as its initial value.
    """
    params = {name: leaf.astype(jnp.float32) for name, leaf in trainable.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=params,
        opt_state=optimizer.init(params),
        key=jax.random.key(seed),
        average=jax.tree.map(jnp.copy, params) if averages else None,
        previously_trained={
            name: leaf.astype(jnp.float32) for name, leaf in (previously_trained or {}).items()
        },
        bad_steps=jnp.zeros((), jnp.int32),
    )


def place_state(
    state: TrainState,
    shardings: Mapping[str, jax.sharding.NamedSharding],
    mesh: jax.sharding.Mesh,
    offload: bool = False,
) -> Any:
    """Return the sharding of each leaf; moments, their scales and average follow their parameter.

    Args:
        state: arrays, or their shapes.
        shardings: name -> sharding of the parameter.
        mesh: all other leaves are replicated on it.
        offload: whether moments of matrices are in host memory.
    """
    params = {**state.previously_trained, **state.trainable}
    whole = replicated(mesh)

    def place(path: tuple[Any, ...], leaf: Any) -> jax.sharding.NamedSharding:
        # The parameters' dict is flat, so a leaf's own name is the last key on its path.
        name = str(getattr(path[-1], "key", ""))
        follows = name in params and leaf.ndim == params[name].ndim
        return shardings[name] if follows and _cuts(shardings[name], leaf.shape) else whole

    placed: TrainState = jax.tree_util.tree_map_with_path(place, state)
    if not offload:
        return placed
    moments = jax.tree.map(
        lambda where, leaf: where.with_memory_kind(HOST) if leaf.ndim > 1 else where,
        placed.opt_state,
        state.opt_state,
    )
    return dataclasses.replace(placed, opt_state=moments)


def _cuts(sharding: jax.sharding.NamedSharding, shape: tuple[int, ...]) -> bool:
    """Return whether a sharding divides a shape: a parameter's, or that of its blocks' scales."""
    return all(
        size % math.prod(sharding.mesh.shape[axis] for axis in _axes(entry)) == 0
        for size, entry in zip(shape, sharding.spec, strict=False)
    )


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the mesh axes of one entry of a partitioning."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else entry
