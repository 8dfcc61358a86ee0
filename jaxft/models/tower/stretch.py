"""Stretches of equal blocks: scanned over their stacked leaves in pieces, or unrolled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.layers.cache import UNCACHED, BlockCache
from jaxft.models.layers.loss import Routed
from jaxft.models.tower.residuals import Policy, policy_of
from jaxft.models.tower.tower import Compute, Params, Part, Tower
from jaxft.models.tower.updating import run_updating

# A run of recomputed blocks is scanned in at most PIECES pieces of at least FEW blocks, or of two
# periods: only one piece's weights are stacked and cast at a time, in the forward and in the
# backward pass. Each piece is a program to compile.
PIECES, FEW = 4, 4

Numbers = Mapping[str, Any]
Windows = Sequence[int | None]  # what each block's kernel is compiled for; None where it is data
Step = Callable[  # the first argument is the block's window
    [int | None, jax.Array, BlockCache, Params, jax.Array | int, Numbers],
    tuple[jax.Array, BlockCache],
]


def part_values(params: Params, names: Mapping[str, str], compute: Compute) -> dict[str, jax.Array]:
    """Collect the arrays that a part is bound to, path -> array, cast to the compute type."""
    return {path: params[name].astype(compute.dtype) for path, name in names.items()}


def block_inputs(
    tower: Tower, params: Params, compute: Compute, index: int
) -> tuple[Params, int, Numbers]:
    """Collect what a step takes of a block: its leaves, its index, and its own numbers."""
    numbers = {name: of[index] for name, of in tower.numbers.items()}
    return part_values(params, tower.block_names(index), compute), index, numbers


def summed_use(uses: Iterable[Routed | None]) -> Routed | None:
    """Add up the use of the experts of several blocks; None where none gives it."""
    present = [use for use in uses if use is not None]
    return jax.tree.map(lambda *parts: sum(parts), *present) if present else None


def period_of(windows: Windows) -> int:
    """Return after how many blocks the windows repeat; their number where they do not."""
    count = len(windows)
    return next(p for p in range(1, count + 1) if windows[p:] == windows[: count - p])


def run_stretch(
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
    period, count = period_of(windows), len(indices)
    scanned = compute.scan and count >= 2 * period
    steps: list[Callable[..., Any]] = [partial(step, window) for window in windows[:period]]
    policy = policy_of(compute.remat)
    if policy is not None:
        # XLA merges nothing between the iterations of a scan: prevent_cse would only cost time.
        steps = [jax.checkpoint(one, prevent_cse=not scanned, policy=policy) for one in steps]
    uses: list[Routed | None] = []
    for run, own in _pieces(tower, part, steps, scanned, policy, indices, compute):
        names = (name for index in own for name in tower.block_names(index).values())
        stream, use = run_updating(run, names, params, stream)
        uses.append(use)
    return stream, summed_use(uses)


def _pieces(
    tower: Tower,
    part: Part,
    steps: Sequence[Callable[..., Any]],
    scanned: bool,
    policy: Policy | None,
    indices: list[int],
    compute: Compute,
) -> Iterator[tuple[Callable[[Params, Any], Any], list[int]]]:
    """Yield `(params, stream) -> (stream, use)` of equal blocks, and which blocks each runs."""
    if not scanned:
        for one, index in zip(cycle(steps), indices, strict=False):
            yield partial(_run_one, tower, one, compute, index), [index]
        return
    period, count = len(steps), len(indices)
    pieces = 1 if policy is None else max(1, min(PIECES, count // max(FEW, 2 * period)))
    for number in range(pieces):
        first, last = (count // period * n // pieces * period for n in (number, number + 1))
        own = indices[first:last]
        scan = partial(_scan, tower, part, steps, compute, own)
        # The backward pass stacks again; it does not recompute the streams, saved by name.
        yield scan if policy is None else jax.checkpoint(scan, policy=policy), own


def _run_one(
    tower: Tower,
    step: Callable[..., Any],
    compute: Compute,
    index: int,
    params: Params,
    stream: Any,
) -> tuple[jax.Array, Routed | None]:
    x, cache = step(stream, UNCACHED, *block_inputs(tower, params, compute, index))
    return x, cache.routed


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
