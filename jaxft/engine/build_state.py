"""The parameters and the state of a built run, each leaf where the mesh wants it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.engine.build import Build, model_options
from jaxft.engine.mesh import replicated
from jaxft.engine.state import TrainState
from jaxft.models.registry import Model, load


def load_params(built: Build, checkpoint: str | None = None) -> Model:
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
    """The frozen leaves in the compute type, where they stay untouched."""
    dtype = jnp.dtype(built.compute.dtype)
    return {name: params[name].astype(dtype) for name in built.table.frozen}


def initial_state(built: Build, params: dict[str, jax.Array]) -> TrainState:
    """The state before the first step: trainable leaves in float32, fresh moments, step 0.

    Every leaf is committed to its sharding, as a restored one is, so that a resumed run finds the
    compiled step in the cache.
    """
    shardings = state_shardings(built)
    make = jax.jit(partial(_fresh_state, built), out_shardings=shardings)
    return make({name: params[name] for name in built.table.trainable})


def _fresh_state(built: Build, trainable: dict[str, jax.Array]) -> TrainState:
    trainable = {name: leaf.astype(jnp.float32) for name, leaf in trainable.items()}
    average = jax.tree.map(jnp.copy, trainable) if built.config.train.ema is not None else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        opt_state=built.optimizer.init(trainable),
        key=jax.random.key(built.config.run.seed.dropout),
        average=average,
        bad_steps=jnp.zeros((), jnp.int32),
    )


def abstract_state(built: Build) -> TrainState:
    """The state's shapes, dtypes and shardings, without a value."""
    trainable = {name: built.model.params[name] for name in built.table.trainable}
    shapes = jax.eval_shape(partial(_fresh_state, built), trainable)
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
