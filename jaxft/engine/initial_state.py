"""The initial parameters and state of a run, and its state as a phase begins, sharded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.engine.memory.storage import store, stored_shape
from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.engine.state import TrainState, fresh_state, place_state
from jaxft.layerwise.optimizer import carry_state
from jaxft.layerwise.phases import ever_trained
from jaxft.models.load import Model
from jaxft.models.quantized import Quantized
from jaxft.models.values import with_values


def load_params(setup: Setup) -> Model:
    """Load the model's weights directly into their shards; initialize new leaves from the seed.

    What is stored quantized is so as soon as it is read: no device holds all of the weights.
    """
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=setup.shardings[name])
        for name, leaf in setup.model.params.items()
    }
    described = dataclasses.replace(setup.model, params=placed)
    seed, like = setup.config.run.seed.init, partial(_quantized, setup)
    return with_values(
        described,
        seed=seed,
        stored=lambda name, value: store(value, like(name)) if name in setup.quantized else value,
    )


def frozen_params(setup: Setup, now: PhaseSetup, params: dict[str, jax.Array]) -> dict[str, Any]:
    """Select the leaves that no phase has trained yet; those never trained in the compute type."""
    return {name: store(params[name], leaf) for name, leaf in abstract_frozen(setup, now).items()}


def abstract_frozen(setup: Setup, now: PhaseSetup) -> dict[str, jax.ShapeDtypeStruct | Quantized]:
    """Describe the result of `frozen_params`: shapes, dtypes and shardings, no values."""
    dtype, ever = jnp.dtype(now.compute.dtype), ever_trained(setup.phases)
    begun = ever_trained(setup.phases, now.phase.index + 1)
    return {
        name: _quantized(setup, name)
        if name in setup.quantized
        else jax.ShapeDtypeStruct(
            setup.model.params[name].shape,
            jnp.float32 if name in ever else dtype,
            sharding=setup.shardings[name],
        )
        for name in now.table.frozen
        if name not in begun
    }


def _quantized(setup: Setup, name: str) -> Quantized:
    """Describe a quantized leaf."""
    shape, axes = setup.model.params[name].shape, setup.model.leaves[name].axes
    return stored_shape(shape, setup.quantized[name], setup.compute.dtype, axes, setup.mesh)


def abstract_anchor(setup: Setup, now: PhaseSetup) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe the anchor of a phase under L2-SP: shapes, dtypes and shardings, no values."""
    return {
        name: jax.ShapeDtypeStruct(
            setup.model.params[name].shape, jnp.float32, sharding=setup.shardings[name]
        )
        for name in now.anchored
    }


def initial_state(setup: Setup, now: PhaseSetup, params: dict[str, jax.Array]) -> TrainState:
    """Make the state before the first step: trainable leaves in float32, fresh moments, step 0.

    Every leaf is committed to its sharding, as a restored one is, so that a resumed run hits the
    compilation cache.
    """
    shardings, begun = state_shardings(setup, now), ever_trained(setup.phases, now.phase.index)
    make = jax.jit(_maker(setup, now), out_shardings=shardings)
    previously_trained = {name: params[name] for name in now.table.frozen if name in begun}
    return make({name: params[name] for name in now.table.trainable}, previously_trained)


def enter_phase(
    setup: Setup, now: PhaseSetup, state: TrainState, frozen: dict[str, jax.Array]
) -> TrainState:
    """Make the state as a phase begins: same values, and the moments of what still trains.

    Args:
        setup: the run.
        now: the phase that begins.
        state: the state at the end of the previous phase.
        frozen: the frozen parameters of that phase.
    """
    left = state.average if now.schedule_free and state.average else {}
    known = {**frozen, **state.previously_trained, **state.trainable}
    begun = ever_trained(setup.phases, now.phase.index)
    trainable = {name: known[name] for name in now.table.trainable}
    # A parameter that a schedule-free rule stops training keeps its averaged value.
    previously_trained = {n: left.get(n, known[n]) for n in now.table.frozen if n in begun}
    make = jax.jit(_maker(setup, now), out_shardings=state_shardings(setup, now))
    return carry_on(state, make(trainable, previously_trained))


def carry_on(before: TrainState, fresh: TrainState) -> TrainState:
    """Carry everything that survives a phase change into the next phase's fresh state.

    Args:
        before: the state at the end of the previous phase.
        fresh: the new phase's state, in which only the parameters are those of `before`.
    """
    average = fresh.average
    if average is not None and before.average is not None:
        average = {name: before.average.get(name, leaf) for name, leaf in average.items()}
    return dataclasses.replace(
        fresh,
        step=before.step,
        opt_state=carry_state(before.opt_state, fresh.opt_state),
        key=before.key,
        average=average,
        bad_steps=before.bad_steps,
    )


def _maker(setup: Setup, now: PhaseSetup) -> Callable[..., TrainState]:
    """Return the function that makes a phase's fresh state from its parameters."""
    seed = setup.config.run.seed.dropout
    return partial(fresh_state, optimizer=now.optimizer, seed=seed, averages=now.averages)


def abstract_state(setup: Setup, now: PhaseSetup) -> TrainState:
    """Describe the state: shapes, dtypes and shardings, no values."""
    params, begun = setup.model.params, ever_trained(setup.phases, now.phase.index)
    trainable = {name: params[name] for name in now.table.trainable}
    previously_trained = {name: params[name] for name in now.table.frozen if name in begun}
    shapes = jax.eval_shape(_maker(setup, now), trainable, previously_trained)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        place_state(shapes, setup.shardings, setup.mesh, setup.config.optimizer.offload),
    )


def state_shardings(setup: Setup, now: PhaseSetup) -> TrainState:
    """Return the sharding of each leaf of the state; moments and average follow their parameter."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup, now))
