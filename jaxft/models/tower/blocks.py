"""Blocks of a tower as a pure function of the flat parameters, scanned in runs of equal blocks.

B rows of T positions, D wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from jaxft.models.layers.cache import UNCACHED, BlockCache
from jaxft.models.layers.kernels import HEADS, ROWS
from jaxft.models.layers.math import PRODUCT
from jaxft.models.tower.tower import Compute, Params, Part, Tower

STREAM = "stream"  # the name of a block's input, which the policies below save
# What the backward pass saves, in a block and between the blocks of a scan.
SAVED = {
    "full": jax.checkpoint_policies.save_only_these_names(STREAM),
    "dots": jax.checkpoint_policies.save_only_these_names(STREAM, PRODUCT),
}
# A run of recomputed blocks is scanned in at most PIECES pieces of at least FEW blocks: only one
# piece's weights are stacked and cast at a time, in the forward and in the backward pass. Each
# piece is a program to compile.
PIECES, FEW = 4, 4

Numbers = Mapping[str, Any]
Cache = Sequence[BlockCache]  # one a block
Step = Callable[
    [jax.Array, BlockCache, Params, jax.Array | int, Numbers], tuple[jax.Array, BlockCache]
]


def part_values(params: Params, names: Mapping[str, str], compute: Compute) -> dict[str, jax.Array]:
    """Collect the arrays that a part is bound to, path -> array, cast to the compute type."""
    return {path: params[name].astype(compute.dtype) for path, name in names.items()}


def run_blocks(
    tower: Tower,
    params: Params,
    stream: jax.Array,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
    blocks: range,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Run some of a tower's blocks, cut into runs of alike blocks.

    Blocks are alike when they are the same part and the same of their leaves are trained: then
    their stacked leaves are wholly trained or wholly frozen, and a scan over them computes no
    unneeded gradient.

    Args:
        tower: whose blocks.
        params: the flat dict.
        stream: [B, T, D].
        context: the blocks' other input, such as the mask.
        key: turns dropout on; block i uses `fold_in(key, i)`.
        compute: how to run.
        blocks: which, by their indices.
        cache: each of these blocks' own; None where nothing is cached. Blocks with one are never
            scanned: each cache is a buffer of its own, written in place.

    Returns:
        The stream after them [B, T, D], and their caches with the new positions.
    """

    def alike(index: int) -> tuple[Part, tuple[str, ...]]:
        names = tower.block_names(index)
        return tower.blocks[index], tuple(p for p, name in names.items() if compute.trains(name))

    caches: list[BlockCache] = []
    for (part, trained), run in groupby(blocks, alike):
        indices = list(run)
        step = partial(_run_block, part, context, key if trained else None, compute)
        with segment(tower, f"blocks {indices[0]}-{indices[-1]}"):
            stream = _placed(stream, compute)
            if cache is None:
                stream = _run_alike(tower, part, step, indices, params, stream, compute)
            else:
                own = [cache[index - blocks.start] for index in indices]
                stream, added = _run_cached(tower, step, indices, params, stream, compute, own)
                caches.extend(added)
    return stream, None if cache is None else tuple(caches)


def _placed(stream: jax.Array, compute: Compute) -> jax.Array:
    """Constrain the stream [B, T, D] so that each device holds the rows of its own batch.

    Without this constraint the partitioner moves activations to the parameters' shards: every
    device then computes all rows of its part of the width, and exchanges whole activations. The
    stream between the wide matrices, which all devices of a tensor group would replicate, is
    sharded along T, so that norms are computed once.
    Source: Korthikanti et al. (2022), https://arxiv.org/abs/2205.05198.
    """
    mesh = compute.mesh
    if mesh is None or mesh.size == 1:
        return stream
    if stream.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS):
        return stream  # rows that do not divide over the devices: leave it to the partitioner
    along = HEADS if stream.shape[1] % mesh.shape[HEADS] == 0 else None
    return jax.lax.with_sharding_constraint(stream, NamedSharding(mesh, PartitionSpec(ROWS, along)))


def segment(tower: Tower, name: str) -> AbstractContextManager:
    """Name a segment of the tower for profiles and counted costs."""
    return jax.named_scope(f"[{tower.prefix}{name}]")


def _run_block(
    part: Part,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
    stream: jax.Array,
    cache: BlockCache,
    values: Params,
    index: jax.Array | int,
    numbers: Numbers,
) -> tuple[jax.Array, BlockCache]:
    stream = checkpoint_name(stream, STREAM)
    block_key = None if key is None else jax.random.fold_in(key, index)
    block = part.bind(values, mesh=compute.mesh)
    out, cache = block(stream, context, block_key, cache, **numbers)
    return _placed(out, compute), cache


def _run_cached(
    tower: Tower,
    step: Step,
    indices: list[int],
    params: Params,
    stream: jax.Array,
    compute: Compute,
    caches: Sequence[BlockCache],
) -> tuple[jax.Array, list[BlockCache]]:
    """Run blocks that cache, one by one: the stream after them, and each one's cache."""
    added = []
    for index, cache in zip(indices, caches, strict=True):
        stream, cache = step(stream, cache, *_inputs(tower, params, compute, index))
        added.append(cache)
    return stream, added


def _inputs(
    tower: Tower, params: Params, compute: Compute, index: int
) -> tuple[Params, int, Numbers]:
    """Collect what a step takes of a block: its leaves, its index, and its own numbers."""
    numbers = {name: of[index] for name, of in tower.numbers.items()}
    return part_values(params, tower.block_names(index), compute), index, numbers


def _run_alike(
    tower: Tower,
    part: Part,
    step: Step,
    indices: list[int],
    params: Params,
    stream: jax.Array,
    compute: Compute,
) -> jax.Array:
    """Run equal blocks and return the stream: scanned over their stacked leaves, or unrolled."""
    scanned = compute.scan and len(indices) > 1
    if compute.remat in SAVED:
        # XLA merges nothing between the iterations of a scan: prevent_cse would only cost time.
        step = jax.checkpoint(step, prevent_cse=not scanned, policy=SAVED[compute.remat])
    if not scanned:
        for index in indices:
            stream, _ = step(stream, UNCACHED, *_inputs(tower, params, compute, index))
        return stream
    if compute.remat not in SAVED:
        return _scan(tower, part, step, compute, indices, params, stream)
    count = max(1, min(PIECES, len(indices) // FEW))
    for number in range(count):
        first, last = (len(indices) * n // count for n in (number, number + 1))
        scan = partial(_scan, tower, part, step, compute, indices[first:last])
        # The backward pass stacks again; it does not recompute the streams, saved by name.
        stream = jax.checkpoint(scan, policy=SAVED[compute.remat])(params, stream)
    return stream


def _scan(
    tower: Tower,
    part: Part,
    step: Step,
    compute: Compute,
    indices: list[int],
    params: Params,
    stream: jax.Array,
) -> jax.Array:
    """Run one scan over equal blocks and return the stream."""
    per_block = [part_values(params, tower.block_names(index), compute) for index in indices]
    stacked = {p: jnp.stack([block[p] for block in per_block]) for p in part.leaves}
    chosen = {name: jnp.asarray([of[i] for i in indices]) for name, of in tower.numbers.items()}
    stream, _ = jax.lax.scan(
        lambda x, block: (step(x, UNCACHED, *block)[0], None),
        stream,
        (stacked, jnp.asarray(indices), chosen),
    )
    return stream
