"""Blocks of which a few train, chosen by data: one program, whichever they are.

The program names blocks by storage position. Those that train come first, and a tower's order says
at which position each of its blocks is stored: another choice is another order, with other values
under the same names, and nothing is compiled again. Gradients are computed, and take memory, for
the blocks that train alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.errors import UserError
from jaxft.layerwise.sampling import ORDER
from jaxft.models.layers.cache import UNCACHED
from jaxft.models.tower.blocks import (
    kernel_windows,
    placed,
    run_block,
    segment,
)
from jaxft.models.tower.linears import GatedLinear, with_linears
from jaxft.models.tower.residuals import policy_of
from jaxft.models.tower.sampled_scan import Context, SampledBlocks, run_scan
from jaxft.models.tower.stretch import Numbers, part_values
from jaxft.models.tower.tower import Compute, Params, Part, Tower


def run_sampled(
    tower: Tower,
    params: Params,
    stream: jax.Array,
    context: Any,
    key: jax.Array | None,
    compute: Compute,
) -> jax.Array:
    """Run the blocks of a tower, some of which train: the stream after them [B, T, D].

    Args:
        tower: whose blocks are all one part.
        params: the flat dict with the tower's `ORDER`, its blocks named by storage position.
        stream: [B, T, D].
        context: the blocks' other input, such as the mask.
        key: turns dropout on; block i uses `fold_in(key, i)`.
        compute: how to run; says which positions train.

    Raises:
        UserError: a loss reads more of the blocks than their stream.
    """
    if tower.balanced:
        raise UserError(
            "sampling: the load-balancing loss of experts reads all blocks at once, and cannot be "
            "combined with sampled blocks.",
            "Leave out model.router_aux_loss_coef, and output_router_logits in config.json.",
        )
    count, part, orders = len(tower.blocks), tower.blocks[0], orders_of(tower, params)
    names = [tower.block_names(position) for position in range(count)]
    values = [part_values(params, own, compute) for own in names]
    stored = {path: jnp.stack([own[path] for own in values]) for path in part.leaves}
    sampled = {path: sum(compute.trains(own[path]) for own in names) for path in part.leaves}
    trained = {path: stored[path][:number] for path, number in sampled.items() if number}
    leaves, structure = jax.tree.flatten(context)
    arrays = {n: leaf for n, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

    def context_of(own: Context) -> Any:
        whole = dict(enumerate(leaves)) | dict(zip(arrays, own, strict=True))
        return jax.tree.unflatten(structure, whole.values())

    by_map = tower.prefix + ORDER not in params
    gated = with_linears(part, lambda plain, _: GatedLinear(plain)) if by_map else part
    blocks = SampledBlocks(
        step=_step_of(tower, gated, compute, stream.shape[:2], context_of),
        precision=compute.precision,
        numbers={name: tuple(of) for name, of in tower.numbers.items()},
        sampled={path: number for path, number in sampled.items() if number},
        gates=tuple(path for path in gated.leaves if path not in part.leaves),
    )
    with segment(tower, f"blocks 0-{count - 1}"):
        stream = placed(stream, compute)
        return run_scan(blocks, trained, stored, orders, stream, list(arrays.values()), key)


def is_sampled(tower: Tower, params: Params) -> bool:
    """Return whether a flat dict says in which order a tower's blocks are stored."""
    return any(name.startswith(tower.prefix + ORDER) for name in params)


def orders_of(tower: Tower, params: Params) -> dict[str, jax.Array]:
    """Return the storage position of each block, of each path: `[blocks]` int32.

    Whole blocks have one order, linear maps one each; what belongs to neither lies in place.
    """
    of_blocks = params.get(tower.prefix + ORDER, jnp.arange(len(tower.blocks), dtype=jnp.int32))
    return {
        path: params.get(f"{tower.prefix}{ORDER}/{path.rpartition('/')[0]}", of_blocks)
        for path in tower.blocks[0].leaves
    }


def _step_of(
    tower: Tower,
    part: Part,
    compute: Compute,
    shape: tuple[int, ...],
    context_of: Callable[[Context], Any],
) -> Callable[..., jax.Array]:
    """Build `(values, stream, context, key, index, numbers)` to the stream after a block."""
    windows = set(kernel_windows(tower, compute, shape))
    if len(windows) > 1:
        compute, windows = replace(compute, attention="xla"), {None}  # there a window is data

    def step(
        values: Params, x: jax.Array, context: Context, key: Any, index: Any, numbers: Numbers
    ) -> jax.Array:
        run = partial(run_block, part, context_of(context), key, compute, next(iter(windows)))
        return run(x, UNCACHED, values, index, numbers)[0]

    policy = policy_of(compute.remat)
    return step if policy is None else jax.checkpoint(step, prevent_cse=False, policy=policy)
