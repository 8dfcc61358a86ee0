"""The leaves of a checkpoint: what they are called, what they were, and whether they still are."""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.errors import UserError

Leaves = dict[str, dict[str, Any]]  # name -> {"shape", "dtype", "checksum"}
Read = TypeVar("Read")


class DamagedError(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


def parts_of(state: Any) -> dict[str, Any]:
    """The fields of a state that hold arrays; Orbax refuses an empty tree."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def describe(parts: dict[str, Any]) -> Leaves:
    sums = checksum(parts)
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": sums[name]}
        for name, leaf in flat(parts).items()
    }


def compare(saved: Leaves, wanted: dict[str, Any], where: str) -> None:
    """Names the first leaf that differs: Orbax names none, and casts a wrong dtype in silence."""
    hint = "The model, the groups and the optimizer must be those of the run that saved it."
    for name, leaf in wanted.items():
        if name not in saved:
            raise UserError(f"{where} lacks '{name}', which this run needs.", hint)
        there = f"{tuple(saved[name]['shape'])} {saved[name]['dtype']}"
        here = f"{tuple(leaf.shape)} {leaf.dtype}"
        if there != here:
            raise UserError(f"{where}: '{name}' is {there} there and {here} in this run.", hint)
    for name in saved:
        if name not in wanted:
            raise UserError(f"{where} holds '{name}', which this run does not have.", hint)


def verify(saved: Leaves, found: dict[str, int]) -> None:
    """Compares the checksums of what was loaded with those of what was saved.

    Raises:
        DamagedError: one differs.
    """
    for name, value in found.items():
        if value != saved[name]["checksum"]:
            raise DamagedError(f"'{name}' is not what was saved")


def attempt(read: Callable[[], Read], problem: str) -> Read:
    """What `read` returns, or one error for the dozen types that Orbax raises for damage."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None  # arrays that Orbax left half-read complain when collected
    try:
        return read()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # not the checkpoint's fault
    except Exception:
        logging.getLogger(__name__).debug(problem, exc_info=True)
    finally:
        gc.collect()
        sys.unraisablehook = hook
    raise DamagedError(problem)


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
    sums = {name: _leaf_checksum(leaf) for name, leaf in flat(tree).items()}
    return {name: int(value) for name, value in jax.device_get(sums).items()}


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
