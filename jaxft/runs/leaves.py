"""The leaves of a checkpoint: what they are called, what they were, and whether they still are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.device.host_memory import fetched
from jaxft.errors import UserError
from jaxft.runs.errors import DamagedError
from jaxft.tree import under

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

State = TypeVar("State", bound="DataclassInstance")
Leaves = dict[str, dict[str, Any]]  # name -> {"shape", "dtype", "checksum"}
STORED = "stored"  # metadata of a state's field: its name in checkpoints, if that is another


def parts_of(state: Any) -> dict[str, Any]:
    """Select the fields of a state that hold arrays; Orbax refuses an empty tree."""
    fields = {stored: getattr(state, name) for stored, name in _stored_names(state).items()}
    return {stored: tree for stored, tree in fields.items() if jax.tree.leaves(tree)}


def with_parts(state: State, parts: Mapping[str, Any]) -> State:
    """Replace the fields of a state by those that `parts_of` or a checkpoint gave."""
    names = _stored_names(state)
    return dataclasses.replace(state, **{names[stored]: tree for stored, tree in parts.items()})


def _stored_names(state: Any) -> dict[str, str]:
    """Return the field of each stored name."""
    return {
        field.metadata.get(STORED, field.name): field.name for field in dataclasses.fields(state)
    }


def describe(parts: dict[str, Any], sums: Mapping[str, jax.Array]) -> Leaves:
    """Shape, dtype and checksum of every leaf, by its name; waits for the checksums.

    Args:
        parts: trees of arrays.
        sums: what `begin_checksum` gave for them, or for what they are copies of.
    """
    sums = jax.device_get(dict(sums))
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": int(sums[name])}
        for name, leaf in flat(parts).items()
    }


def shapes_of(
    saved: Leaves, fields: Sequence[str], shardings: Mapping[str, jax.sharding.Sharding] | None
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Return what to read of the fields that a checkpoint has: field -> name -> shape and sharding.

    Args:
        saved: the checkpoint's leaves.
        fields: dicts of parameters in the state.
        shardings: name -> where to put it; None puts all on the first device.
    """
    home = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sums = {
        field: {
            name: jax.ShapeDtypeStruct(
                leaf["shape"], leaf["dtype"], sharding=shardings[name] if shardings else home
            )
            for name, leaf in under(saved, field).items()
        }
        for field in fields
    }
    return {field: leaves for field, leaves in sums.items() if leaves}


def compare(saved: Leaves, parts: dict[str, Any], where: str) -> None:
    """Names the first leaf that differs: Orbax names none, and casts a wrong dtype in silence."""
    wanted = flat(parts)
    hint = "The model, groups and optimizer must match the run that saved it."
    for name, leaf in wanted.items():
        if name not in saved:
            raise UserError(f"{where} lacks '{name}', which this run needs.", hint)
        there = f"{tuple(saved[name]['shape'])} {saved[name]['dtype']}"
        here = f"{tuple(leaf.shape)} {leaf.dtype}"
        if there != here:
            raise UserError(
                f"{where}: '{name}' is {there} in the checkpoint and {here} in this run.", hint
            )
    for name in saved:
        if name not in wanted:
            raise UserError(f"{where} holds '{name}', which this run does not have.", hint)


def verify(saved: Leaves, loaded: Any, sums: Mapping[str, int]) -> None:
    """Compares what was loaded with what was saved: shapes, types and checksums.

    Orbax reads a random key without its metadata as plain integers, and says nothing.

    Args:
        saved: the leaves as they were saved.
        loaded: trees of arrays.
        sums: what `checksum` gave for them.

    Raises:
        DamagedError: one differs.
    """
    for name, leaf in flat(loaded).items():
        same_type = str(leaf.dtype) == saved[name]["dtype"]
        same_shape = list(leaf.shape) == saved[name]["shape"]
        if not (same_type and same_shape and sums[name] == saved[name]["checksum"]):
            raise DamagedError(f"'{name}' differs from what was saved")


def finite(metrics: Mapping[str, float] | None) -> dict[str, float] | None:
    """The metrics that JSON can hold."""
    if metrics is None:
        return None
    scores = {name: float(value) for name, value in metrics.items()}
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def checksum(tree: Any) -> dict[str, int]:
    """A number per leaf that changes when any bit of it does, whatever devices hold it.

    Each 32-bit word of the array is mixed with its index and the words are added modulo 2**32, so
    the sum is the same in any order and on any mesh. The mixing is a bijection of the word: one
    changed word always changes the sum.

    Args:
        tree: arrays of 1, 2, 4 or 8 bytes an element, or typed keys; all are read on the devices.

    Returns:
        The leaf's path joined by `/` -> an unsigned 32-bit number.

    Source: the finaliser of MurmurHash3 (Appleby, 2011).
    """
    return {name: int(sums) for name, sums in jax.device_get(begin_checksum(tree)).items()}


def begin_checksum(tree: Any) -> dict[str, jax.Array]:
    """Start `checksum` on the devices; its results are still being computed."""
    sums = {}
    for name, leaf in flat(tree).items():
        sums[name] = _leaf_checksum(fetched(leaf))
        if len(leaf.devices()) > 1 and next(iter(leaf.devices())).platform == "cpu":
            # Programs that do not wait for each other and hold collectives, many at once, can take
            # all of XLA's CPU threads and then wait for each other for ever.
            sums[name].block_until_ready()
    return sums


@jax.jit
def _leaf_checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    width = leaf.dtype.itemsize
    words = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32))
    words = words.astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)  # the position in row-major order, modulo 2**32
    for axis, size in enumerate(words.shape):
        index = index * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )
    mixed = words ^ (index * np.uint32(0x9E3779B1) + np.uint32(0x7F4A7C15))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def flat(tree: Any) -> dict[str, Any]:
    """Every array of a tree by its path, such as `trainable/head/kernel`."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
