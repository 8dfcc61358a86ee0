"""Parameters of a described model: read from its checkpoint, sampled, or supplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from jaxft.models.adapters.read import stored_leaf
from jaxft.models.adapters.starts import with_starts
from jaxft.models.layers.modules import Leaf
from jaxft.models.model import Model
from jaxft.models.weights.leaves import fresh_leaf, load_leaf

ShardingOf = Callable[[str, tuple[int, ...], tuple[str, ...]], Sharding | None]


def shapes_of(
    leaves: Mapping[str, Leaf], dtype: str, sharding: ShardingOf | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape, type and sharding of every parameter.

    Args:
        leaves: parameter -> its description.
        dtype: the type that it has in memory.
        sharding: see `registry.load`.
    """
    return {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.dtype(dtype),
            sharding=sharding(name, leaf.shape, leaf.axes) if sharding else None,
        )
        for name, leaf in leaves.items()
    }


def with_values(
    model: Model,
    *,
    dtype: str = "float32",
    seed: int = 0,
    known: Mapping[str, jax.Array] | None = None,
    stored: Callable[[str, jax.Array], Any] = lambda name, value: value,
) -> Model:
    """Give a described model its parameters, read where the checkpoint has them.

    Args:
        model: as `registry.describe` gives it.
        dtype, seed: see `registry.load`.
        known: the values of some parameters; the checkpoint's own are not read.
        stored: name, value -> the value as it is stored, before the next is read.
    """
    known = known or {}
    params = {
        name: stored(
            name, read_value(model, name, model.params[name].sharding, dtype=dtype, seed=seed)
        )
        for name in model.leaves
        # Starts of new adapters depend on the initial matrices, so those are sampled too.
        if name not in known or name not in model.matching.loaded
    }
    if model.adapted is not None:
        params = with_starts(params, model.adapted, set(model.matching.new))
    params |= known
    return replace(model, params={name: params[name] for name in model.leaves})


def read_value(
    model: Model, name: str, where: Any = None, *, dtype: str = "float32", seed: int = 0
) -> jax.Array:
    """Read or initialize one parameter alone; those of `with_starts` as their leaf describes.

    Args:
        model: a described model, or a loaded one, whose own value is not looked at.
        name: the parameter's.
        where: the sharding to read it into.
        dtype, seed: see `registry.load`.
    """
    leaf = model.leaves[name]
    if name not in model.matching.loaded:
        return fresh_leaf(name, leaf, dtype, seed, where)
    tensor, line = model.matching.loaded[name], model.hf_names.get(name)
    return load_leaf(tensor, line or stored_leaf(name), leaf, dtype, where)
