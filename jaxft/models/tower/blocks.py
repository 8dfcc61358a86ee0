"""Blocks of a tower as a pure function of the flat parameters, scanned in runs of equal blocks.

B rows of T positions, D wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import CONTEXT, HEADS, ROWS, context_of
from jaxft.models.layers.loss import Routed
from jaxft.models.tower.residuals import BLOCK_INPUT
from jaxft.models.tower.stretch import (
    Numbers,
    Step,
    Windows,
    block_inputs,
    period_of,
    run_stretch,
    summed_use,
)
from jaxft.models.tower.tower import WINDOW, Compute, Params, Part, Tower

Cache = Sequence[BlockCache]  # one a block


def run_blocks(
    tower: Tower,
    params: Params,
    stream: jax.Array,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
    blocks: range,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None, Routed | None]:
    """Run some of a tower's blocks, cut into runs of alike blocks.

    Blocks are alike when they are the same part and the same of their leaves are trained: then
    their stacked leaves are wholly trained or wholly frozen, and a scan over them computes no
    unneeded gradient.

    Args:
        tower: whose blocks.
        params: the flat dict.
        stream: [B, T, D]; or a tuple of images, [B, H, W, D] each.
        context: the blocks' other input, such as the mask.
        key: turns dropout on; block i uses `fold_in(key, i)`.
        compute: how to run.
        blocks: which, by their indices.
        cache: each of these blocks' own; None where nothing is cached. Blocks with one are never
            scanned: each cache is a buffer of its own, written in place.

    Returns:
        The stream after them [B, T, D], their caches with the new positions, and the use of their
        experts, where they give it.
    """

    def alike(index: int) -> tuple[Part, tuple[str, ...]]:
        names = tower.block_names(index)
        return tower.blocks[index], tuple(p for p, name in names.items() if compute.trains(name))

    caches: list[BlockCache] = []
    uses: list[Routed | None] = []
    shape = jax.tree.leaves(stream)[0].shape[:2]
    windows = kernel_windows(tower, compute, shape) if cache is None else ()
    for (part, trained), alike_run in groupby(blocks, alike):
        indices = list(alike_run)
        step = partial(run_block, part, context, key if trained else None, compute)
        with segment(tower, f"blocks {indices[0]}-{indices[-1]}"):
            stream = placed(stream, compute)
            if cache is None:
                for stretch in stretches(indices, windows):
                    own_windows = [windows[index] for index in stretch]
                    run = partial(run_stretch, tower, part, step, own_windows, stretch)
                    stream, use = run(params, stream, compute)
                    uses.append(use)
            else:
                own = [cache[index - blocks.start] for index in indices]
                stream, added = _run_cached(tower, step, indices, params, stream, compute, own)
                caches.extend(added)
    return stream, None if cache is None else tuple(caches), summed_use(uses)


def kernel_windows(tower: Tower, compute: Compute, shape: tuple[int, ...]) -> Windows:
    """Return the window of each block for which its attention kernel is compiled.

    Where XLA computes attention, a window is data, and blocks share a program whatever it is: None.

    Args:
        tower: whose blocks.
        compute: how to run.
        shape: rows and positions [B, T]. Windows that cover a row are one.
    """
    if tower.needs is None or WINDOW not in tower.numbers:
        return (None,) * len(tower.blocks)
    if compute.kernel(tower.needs, shape) is None:
        return (None,) * len(tower.blocks)
    return tuple(min(int(window), shape[1]) for window in tower.numbers[WINDOW])


def stretches(indices: Sequence[int], windows: Windows) -> list[list[int]]:
    """Cut alike blocks into stretches that can each be scanned.

    Args:
        indices: of the blocks.
        windows: of all blocks. A stretch has the same one throughout, or a pattern of several
            that repeats.
    """
    own = [windows[index] for index in indices]
    period = period_of(own)
    whole = len(own) // period * period if len(own) >= 2 * period else 0
    rest = [list(run) for _, run in groupby(indices[whole:], lambda index: windows[index])]
    return [list(indices[:whole]), *rest] if whole else rest


def placed(stream: jax.Array, compute: Compute) -> jax.Array:
    """Constrain the stream [B, T, D] so that each device holds the rows of its own batch.

    Without this constraint the partitioner moves activations to the parameters' shards: every
    device then computes all rows of its part of the width, and exchanges whole activations. The
    stream between the wide matrices, which all devices of a tensor group would replicate, is
    sharded along T, so that norms are computed once; and over `context` everywhere. Of images only
    the rows are sharded.
    Source: Korthikanti et al. (2022), https://arxiv.org/abs/2205.05198.
    """
    mesh = compute.mesh
    if mesh is None or mesh.size == 1:
        return stream
    if not isinstance(stream, jax.Array):
        return jax.tree.map(partial(placed, compute=compute), stream)
    if stream.shape[0] % math.prod(mesh.shape[axis] for axis in ROWS):
        return stream  # rows that do not divide over the devices: leave it to the partitioner
    along = along_positions(mesh, stream.shape[1]) if stream.ndim == 3 else ()
    return jax.lax.with_sharding_constraint(stream, NamedSharding(mesh, PartitionSpec(ROWS, along)))


def along_positions(mesh: Mesh, length: int) -> tuple[str, ...]:
    """Return the axes that positions are cut over between the wide matrices."""
    context, heads = context_of(mesh), mesh.shape[HEADS]
    if length % (context * heads) == 0:
        return CONTEXT, HEADS
    return (CONTEXT,) if length % context == 0 else ()


def segment(tower: Tower, name: str) -> AbstractContextManager:
    """Name a segment of the tower for profiles and counted costs."""
    return jax.named_scope(f"[{tower.prefix}{name}]")


def run_block(
    part: Part,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
    window: int | None,
    stream: jax.Array,
    cache: BlockCache,
    values: Params,
    index: jax.Array | int,
    numbers: Numbers,
) -> tuple[jax.Array, BlockCache]:
    stream = checkpoint_name(stream, BLOCK_INPUT)
    block_key = None if key is None else jax.random.fold_in(key, index)
    block = part.bind(values, mesh=compute.mesh)
    numbers = numbers if window is None else {**numbers, WINDOW: window}
    out, cache = block(stream, context, block_key, cache, **numbers)
    return placed(out, compute), cache


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
        stream, cache = step(None, stream, cache, *block_inputs(tower, params, compute, index))
        added.append(cache)
    return stream, added
