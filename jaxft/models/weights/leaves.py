"""Values of parameters: loaded from tensors shard by shard, or initialized."""

from __future__ import annotations

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxft.models.layers.modules import Leaf
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor import FLOATS, Index, Tensor

MOST_MAPPED = 2**24  # bytes of a file mapped at a time


def load_leaf(
    tensor: Tensor, name: Name, leaf: Leaf, dtype: str, sharding: Sharding | None
) -> jax.Array:
    """Load a parameter from a tensor; each device's shard of a file is read by itself.

    Args:
        tensor: where to read it.
        name: its line of the name table.
        leaf: its description.
        dtype: the type to hold it in.
        sharding: where its shards go; None for the default device.
    """
    target = jnp.dtype(dtype)

    def put(index: Index, device: jax.Device | None) -> jax.Array:
        index = index or (slice(None),) * len(leaf.shape)
        if name.transpose:
            part = np.moveaxis(_copied(tensor, (index[-1], *index[:-1]), target), 0, -1)
        else:
            part = _copied(tensor, index, target)
        # Shard by shard, so that no more than one is in host memory.
        return jax.block_until_ready(jax.device_put(part, device))

    if sharding is None:
        return put((), None)
    places = sharding.addressable_devices_indices_map(leaf.shape)
    shards = [put(index or (), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def _copied(tensor: Tensor, index: Index, dtype: np.dtype) -> np.ndarray:
    """Copy a part of a tensor into memory, in the order of the file, some rows at a time.

    Mapped pages count as this process's memory, and a shard that reads a part of every row would
    map the whole file.
    """
    if not index:
        return tensor.read(index).astype(dtype)
    spans = [range(size)[part] for part, size in zip(index, tensor.shape, strict=True)]
    copy = np.empty([len(span) for span in spans], dtype)
    width = math.prod(tensor.shape[1:]) * FLOATS[tensor.dtype].itemsize  # bytes of a row
    rows = max(MOST_MAPPED // max(width, 1), 1)
    for first in range(0, len(copy), rows):
        span = spans[0][first : first + rows]
        part = slice(span.start, span.stop)
        copy[first : first + rows] = tensor.read((part, *index[1:]))
    return copy


def fresh_leaf(
    name: str, leaf: Leaf, dtype: str, seed: int, sharding: Sharding | None
) -> jax.Array:
    """Initialize a parameter from the seed and its own name only."""
    # One program for all parameters of a shape: a run reads its initial values at every evaluation.
    initialize = jax.jit(_initialize, static_argnums=(1, 2, 3), out_shardings=sharding)
    return initialize(np.uint32(zlib.crc32(name.encode())), leaf, dtype, seed)


def _initialize(number: jax.Array, leaf: Leaf, dtype: str, seed: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), number)
    if leaf.spread:
        noise = jax.random.uniform(key, leaf.shape, minval=-leaf.spread, maxval=leaf.spread)
        return (leaf.mean + noise).astype(dtype)
    noise = jax.random.normal(key, leaf.shape) if leaf.std else jnp.zeros(leaf.shape)
    return (leaf.mean + leaf.std * noise).astype(dtype)
