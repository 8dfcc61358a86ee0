"""Values of arrays on the host, also of arrays that lie on several hosts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def on_host(array: jax.Array) -> np.ndarray:
    """Return an array's value without jax's cache of the gathered array.

    Of one that lies on several hosts all processes have to ask for the value.
    """
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if array.is_fully_addressable:
        shards = [shard.data for shard in array.addressable_shards]
        return np.asarray(
            jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)
        )
    assert isinstance(array.sharding, NamedSharding)
    return np.asarray(_gather(array.sharding.mesh)(array))


@cache
def _gather(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Return the program that gives every device of a mesh whole arrays."""
    return jax.jit(lambda value: value, out_shardings=NamedSharding(mesh, PartitionSpec()))
