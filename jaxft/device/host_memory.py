"""Arrays that wait in the memory of an accelerator's host."""

from __future__ import annotations

from typing import Any

import jax

HOST, DEVICE = "pinned_host", "device"


def offloaded(shardings: Any) -> bool:
    """Return whether some of a tree's shardings are in host memory."""
    return any(where.memory_kind == HOST for where in jax.tree.leaves(shardings))


def split_by_memory(tree: Any) -> tuple[list[Any], list[Any]]:
    """Divide a tree's leaves, arrays or shapes with shardings, into the devices' and the hosts'."""
    leaves = jax.tree.leaves(tree)
    hosts = [leaf for leaf in leaves if leaf.sharding.memory_kind == HOST]
    return [leaf for leaf in leaves if leaf.sharding.memory_kind != HOST], hosts


def on_device(shardings: Any) -> Any:
    """Return the same shardings in the devices' own memory."""
    return jax.tree.map(lambda where: where.with_memory_kind(DEVICE), shardings)


def fetched(leaf: jax.Array) -> jax.Array:
    """Return an array in the devices' own memory."""
    if leaf.sharding.memory_kind != HOST:
        return leaf
    return jax.device_put(leaf, leaf.sharding.with_memory_kind(DEVICE))
