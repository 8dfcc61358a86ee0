"""Blocks of a tower as a pure function of the flat parameters, scanned in runs of equal blocks.

B rows of T positions, D wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import cycle, groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.models.layers.cache import UNCACHED, BlockCache
from jaxft.models.layers.kernels import CONTEXT, HEADS, ROWS, context_of
from jaxft.models.layers.loss import Routed
from jaxft.models.tower.residuals import BLOCK_INPUT, policy_of
from jaxft.models.tower.tower import WINDOW, Compute, Params, Part, Tower

# A run of recomputed blocks is scanned in at most PIECES pieces of at least FEW blocks, or of two
# periods: only one piece's weights are stacked and cast at a time, in the forward and in the
# backward pass. Each piece is a program to compile.
PIECES, FEW = 4, 4

Numbers = Mapping[str, Any]
Windows = Sequence[int | None]  # what each block's kernel is compiled for; None where it is data
Cache = Sequence[BlockCache]  # one a block
Step = Callable[  # the first argument is the block's window
    [int | None, jax.Array, BlockCache, Params, jax.Array | int, Numbers],
    tuple[jax.Array, BlockCache],
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
    for (part, trained), run in groupby(blocks, alike):
        indices = list(run)
        step = partial(run_block, part, context, key if trained else None, compute)
        with segment(tower, f"blocks {indices[0]}-{indices[-1]}"):
            stream = placed(stream, compute)
            if cache is None:
                for stretch in stretches(indices, windows):
                    own_windows = [windows[index] for index in stretch]
                    run_stretch = partial(_run_alike, tower, part, step, own_windows, stretch)
                    stream, use = run_stretch(params, stream, compute)
                    uses.append(use)
            else:
                own = [cache[index - blocks.start] for index in indices]
                stream, added = _run_cached(tower, step, indices, params, stream, compute, own)
                caches.extend(added)
    return stream, None if cache is None else tuple(caches), summed_use(uses)


def summed_use(uses: Iterable[Routed | None]) -> Routed | None:
    """Add up the use of the experts of several blocks; None where none gives it."""
    present = [use for use in uses if use is not None]
    return jax.tree.map(lambda *parts: sum(parts), *present) if present else None


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
    period = _period(own)
    whole = len(own) // period * period if len(own) >= 2 * period else 0
    rest = [list(run) for _, run in groupby(indices[whole:], lambda index: windows[index])]
    return [list(indices[:whole]), *rest] if whole else rest


def _period(windows: Windows) -> int:
    """Return after how many blocks the windows repeat; their number where they do not."""
    count = len(windows)
    return next(p for p in range(1, count + 1) if windows[p:] == windows[: count - p])


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
        stream, cache = step(None, stream, cache, *_inputs(tower, params, compute, index))
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
    windows: Windows,
    indices: list[int],
    params: Params,
    stream: jax.Array,
    compute: Compute,
) -> tuple[jax.Array, Routed | None]:
    """Run a stretch of equal blocks: scanned over their stacked leaves, or unrolled."""
    period, count = _period(windows), len(indices)
    scanned = compute.scan and count >= 2 * period
    steps: list[Callable[..., Any]] = [partial(step, window) for window in windows[:period]]
    policy = policy_of(compute.remat)
    if policy is not None:
        # XLA merges nothing between the iterations of a scan: prevent_cse would only cost time.
        steps = [jax.checkpoint(one, prevent_cse=not scanned, policy=policy) for one in steps]
    uses: list[Routed | None] = []
    if not scanned:
        for one, index in zip(cycle(steps), indices, strict=False):
            stream, cache = one(stream, UNCACHED, *_inputs(tower, params, compute, index))
            uses.append(cache.routed)
        return stream, summed_use(uses)
    if policy is None:
        return _scan(tower, part, steps, compute, indices, params, stream)
    pieces = max(1, min(PIECES, count // max(FEW, 2 * period)))
    for number in range(pieces):
        first, last = (count // period * n // pieces * period for n in (number, number + 1))
        scan = partial(_scan, tower, part, steps, compute, indices[first:last])
        # The backward pass stacks again; it does not recompute the streams, saved by name.
        stream, use = jax.checkpoint(scan, policy=policy)(params, stream)
        uses.append(use)
    return stream, summed_use(uses)


def _scan(
    tower: Tower,
    part: Part,
    steps: Sequence[Callable[..., tuple[jax.Array, BlockCache]]],
    compute: Compute,
    indices: list[int],
    params: Params,
    stream: jax.Array,
) -> tuple[jax.Array, Routed | None]:
    """Run one scan over equal blocks, as many an iteration as there are steps."""

    def inputs(own: Sequence[int]) -> tuple[Params, jax.Array, Numbers]:
        per_block = [part_values(params, tower.block_names(index), compute) for index in own]
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *per_block)  # or their codes
        numbers = {name: jnp.asarray([of[i] for i in own]) for name, of in tower.numbers.items()}
        return stacked, jnp.asarray(own), numbers

    def run_each(x: jax.Array, blocks: Sequence[tuple[Params, jax.Array, Numbers]]) -> Any:
        uses = []
        for step, block in zip(steps, blocks, strict=True):
            x, cache = step(x, UNCACHED, *block)
            uses.append(cache.routed)
        return x, summed_use(uses)

    period = len(steps)
    each = tuple(inputs(indices[first::period]) for first in range(period))
    stream, uses = jax.lax.scan(run_each, stream, each)
    return stream, jax.tree.map(lambda of_each: of_each.sum(0), uses)
