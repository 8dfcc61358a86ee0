"""The parameters and the state of a built run, each leaf where the mesh wants it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.device.mesh import replicated
from jaxft.engine.setup import Build, model_options
from jaxft.engine.state import TrainState
from jaxft.layerwise.optimizer import carry_state
from jaxft.layerwise.phases import ever_trained
from jaxft.models.load import Model, load
from jaxft.models.weights.source import Checkpoint


def load_params(built: Build, checkpoint: Checkpoint | None = None) -> Model:
    """Read a checkpoint's weights straight into their shards; new leaves come from the seed.

    Args:
        built: the run.
        checkpoint: where to read from; the config's checkpoint when None.
    """
    return load(
        checkpoint or built.config.model.checkpoint,
        seed=built.config.run.seed.init,
        sharding=lambda name, shape, axes: built.shardings[name],
        **model_options(built.config, built.label_names),
    )


def frozen_params(built: Build, params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The leaves that no phase has trained yet: in the compute type those that none ever does."""
    return {name: params[name].astype(leaf.dtype) for name, leaf in abstract_frozen(built).items()}


def abstract_frozen(built: Build) -> dict[str, jax.ShapeDtypeStruct]:
    """What `frozen_params` gives: shapes, dtypes and shardings, without a value."""
    dtype, ever = jnp.dtype(built.compute.dtype), ever_trained(built.phases)
    begun = ever_trained(built.phases, built.phase.index + 1)
    return {
        name: jax.ShapeDtypeStruct(
            built.model.params[name].shape,
            jnp.float32 if name in ever else dtype,
            sharding=built.shardings[name],
        )
        for name in built.table.frozen
        if name not in begun
    }


def pulled(built: Build) -> tuple[str, ...]:
    """The parameters that are pulled back in this phase: those that train and were not new."""
    if not built.config.regularise.l2_sp:
        return ()
    new = set(built.model.report.new)
    return tuple(name for name in built.table.trainable if name not in new)


def abstract_origin(built: Build) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of what parameters are pulled back to in this phase."""
    return {
        name: jax.ShapeDtypeStruct(
            built.model.params[name].shape, jnp.float32, sharding=built.shardings[name]
        )
        for name in pulled(built)
    }


def initial_state(built: Build, params: dict[str, jax.Array]) -> TrainState:
    """The state before the first step: trainable leaves in float32, fresh moments, step 0.

    Every leaf is committed to its sharding, as a restored one is, so that a resumed run finds the
    compiled step in the cache.
    """
    shardings = state_shardings(built)
    make = jax.jit(partial(_fresh_state, built), out_shardings=shardings)
    return make({name: params[name] for name in built.table.trainable}, {})


def enter_phase(built: Build, state: TrainState, frozen: dict[str, jax.Array]) -> TrainState:
    """The state as a phase begins: all values as they were, and moments of what still trains.

    Args:
        built: the run in the phase to come.
        state: at the end of the phase before.
        frozen: as that phase had them.
    """
    left = state.average if built.schedule_free and state.average else {}
    known = {**frozen, **state.settled, **state.trainable}
    begun = ever_trained(built.phases, built.phase.index)
    trainable = {name: known[name] for name in built.table.trainable}
    # What a schedule-free rule stops to move stays where it was scored.
    settled = {n: left.get(n, known[n]) for n in built.table.frozen if n in begun}
    make = jax.jit(partial(_fresh_state, built), out_shardings=state_shardings(built))
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


def _fresh_state(
    built: Build, trainable: dict[str, jax.Array], settled: dict[str, jax.Array]
) -> TrainState:
    trainable = {name: leaf.astype(jnp.float32) for name, leaf in trainable.items()}
    average = jax.tree.map(jnp.copy, trainable) if built.averages else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=built.optimizer.init(trainable),
        key=jax.random.key(built.config.run.seed.dropout),
        average=average,
        settled={name: leaf.astype(jnp.float32) for name, leaf in settled.items()},
        bad_steps=jnp.zeros((), jnp.int32),
    )


def abstract_state(built: Build) -> TrainState:
    """The state's shapes, dtypes and shardings, without a value."""
    params, begun = built.model.params, ever_trained(built.phases, built.phase.index)
    trainable = {name: params[name] for name in built.table.trainable}
    settled = {name: params[name] for name in built.table.frozen if name in begun}
    shapes = jax.eval_shape(partial(_fresh_state, built), trainable, settled)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        _shardings_of(built, shapes),
    )


def state_shardings(built: Build) -> TrainState:
    """Where each leaf of the state lies: moments and average as their parameter does."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(built))


def _shardings_of(built: Build, shapes: TrainState) -> Any:
    whole = replicated(built.mesh)

    def place(path, leaf):
        # The parameters' dict is flat, so a leaf's own name is the last key on its path.
        name = str(getattr(path[-1], "key", ""))
        if name in built.shardings and leaf.shape == built.model.params[name].shape:
            return built.shardings[name]
        return whole

    return jax.tree_util.tree_map_with_path(place, shapes)
