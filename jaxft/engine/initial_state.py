"""The parameters and the state of a run that is set up, each leaf where the mesh wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.engine.state import TrainState, fresh_state, place_state
from jaxft.layerwise.optimizer import carry_state
from jaxft.layerwise.phases import ever_trained
from jaxft.models.load import Model
from jaxft.models.values import with_values


def load_params(setup: Setup) -> Model:
    """The model with its weights, read straight into their shards; new leaves from the seed."""
    placed = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=setup.shardings[name])
        for name, leaf in setup.model.params.items()
    }
    described = dataclasses.replace(setup.model, params=placed)
    return with_values(described, seed=setup.config.run.seed.init)


def frozen_params(
    setup: Setup, now: PhaseSetup, params: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The leaves that no phase has trained yet: in the compute type those that none ever does."""
    return {
        name: params[name].astype(leaf.dtype) for name, leaf in abstract_frozen(setup, now).items()
    }


def abstract_frozen(setup: Setup, now: PhaseSetup) -> dict[str, jax.ShapeDtypeStruct]:
    """What `frozen_params` gives: shapes, dtypes and shardings, without a value."""
    dtype, ever = jnp.dtype(now.compute.dtype), ever_trained(setup.phases)
    begun = ever_trained(setup.phases, now.phase.index + 1)
    return {
        name: jax.ShapeDtypeStruct(
            setup.model.params[name].shape,
            jnp.float32 if name in ever else dtype,
            sharding=setup.shardings[name],
        )
        for name in now.table.frozen
        if name not in begun
    }


def abstract_anchor(setup: Setup, now: PhaseSetup) -> dict[str, jax.ShapeDtypeStruct]:
    """Describe the anchor of a phase under L2-SP: shapes, dtypes and shardings, no values."""
    return {
        name: jax.ShapeDtypeStruct(
            setup.model.params[name].shape, jnp.float32, sharding=setup.shardings[name]
        )
        for name in now.anchored
    }


def initial_state(setup: Setup, now: PhaseSetup, params: dict[str, jax.Array]) -> TrainState:
    """The state before the first step: trainable leaves in float32, fresh moments, step 0.

    Every leaf is committed to its sharding, as a restored one is, so that a resumed run finds the
    compiled step in the cache.
    """
    shardings = state_shardings(setup, now)
    make = jax.jit(_maker(setup, now), out_shardings=shardings)
    return make({name: params[name] for name in now.table.trainable}, {})


def enter_phase(
    setup: Setup, now: PhaseSetup, state: TrainState, frozen: dict[str, jax.Array]
) -> TrainState:
    """The state as a phase begins: all values as they were, and moments of what still trains.

    Args:
        setup: the run.
        now: the phase to come.
        state: at the end of the phase before.
        frozen: as that phase had them.
    """
    left = state.average if now.schedule_free and state.average else {}
    known = {**frozen, **state.settled, **state.trainable}
    begun = ever_trained(setup.phases, now.phase.index)
    trainable = {name: known[name] for name in now.table.trainable}
    # What a schedule-free rule stops to move stays where it was scored.
    settled = {n: left.get(n, known[n]) for n in now.table.frozen if n in begun}
    make = jax.jit(_maker(setup, now), out_shardings=state_shardings(setup, now))
    return carry_on(state, make(trainable, settled))


def carry_on(before: TrainState, fresh: TrainState) -> TrainState:
    """A phase's fresh state with all that goes on from the phase before.

    Args:
        before: at the end of the phase before.
        fresh: the next phase's, with the parameters in it and nothing else of `before`.
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
    """Give the function (trainable, settled) -> the phase's fresh state."""
    seed = setup.config.run.seed.dropout
    return partial(fresh_state, optimizer=now.optimizer, seed=seed, averages=now.averages)


def abstract_state(setup: Setup, now: PhaseSetup) -> TrainState:
    """The state's shapes, dtypes and shardings, without a value."""
    params, begun = setup.model.params, ever_trained(setup.phases, now.phase.index)
    trainable = {name: params[name] for name in now.table.trainable}
    settled = {name: params[name] for name in now.table.frozen if name in begun}
    shapes = jax.eval_shape(_maker(setup, now), trainable, settled)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        place_state(shapes, setup.shardings, setup.mesh),
    )


def state_shardings(setup: Setup, now: PhaseSetup) -> TrainState:
    """Where each leaf of the state lies: moments and average as their parameter does."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup, now))
