"""Scan over blocks of which some train: its backward pass computes what those need.

Each block is differentiated by hand, from what its forward pass saved: a `custom_vjp` around the
scan, since `lax.scan`'s own has a gradient for every block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.tower.tower import Params

Context = list[jax.Array]  # the arrays of what every block reads
Each = tuple[jax.Array, Mapping[str, jax.Array]]  # a block's index, and its position by path
# What the backward pass of a block has to compute: nothing, the gradient of the block's input,
# that and those of its parameters, or the latter alone.
NOTHING, INPUT, BOTH, OWN = range(4)


@dataclass(frozen=True, eq=False)
class SampledBlocks:
    """Static part of a scan over sampled blocks.

    Args:
        step: `(values, stream, context, key, index, numbers)` to the stream after a block.
        precision: jax's matmul precision.
        numbers: the tower's.
        sampled: path -> the number of positions at which it trains.
        gates: the gates of linear maps, where these are sampled one by one.
    """

    step: Callable[..., jax.Array]
    precision: str | None
    numbers: Mapping[str, tuple[float, ...]]
    sampled: Mapping[str, int]
    gates: tuple[str, ...]

    def at(
        self, stored: Params, positions: Mapping[str, jax.Array], index: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Return the values of a block, stored at some positions, and its numbers."""
        numbers = {name: jnp.asarray(of)[index] for name, of in self.numbers.items()}
        values = {path: stack[positions[path]] for path, stack in stored.items()}
        for gate in self.gates:
            kernel = f"{gate.rpartition('/')[0]}/kernel"
            values[gate] = positions[kernel] < self.sampled.get(kernel, 0)
        return values, numbers


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_scan(
    blocks: SampledBlocks,
    trained: Params,
    stored: Params,
    orders: Mapping[str, jax.Array],
    stream: jax.Array,
    context: Context,
    key: jax.Array | None,
) -> jax.Array:
    """Run blocks in a scan.

    Args:
        blocks: what they are.
        trained: path -> `[sampled, ...]`, the values that are differentiated.
        stored: path -> `[blocks, ...]`, all values, which are read.
        orders: path -> `[blocks]` int32, the position of each block.
        stream: [B, T, D].
        context: of every block.
        key: of dropout.
    """
    del trained

    def run(x: jax.Array, each: Each) -> tuple[jax.Array, None]:
        index, positions = each
        values, numbers = blocks.at(stored, positions, index)
        return blocks.step(values, x, context, key, index, numbers), None

    return lax.scan(run, stream, (_indices(orders), orders))[0]


def _indices(orders: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.arange(len(next(iter(orders.values()))))


def _forward(blocks: SampledBlocks, *primals: Any) -> tuple[jax.Array, Any]:
    """Run the blocks, and save what the pullback of each reads, but for parameters and context."""
    _, stored, orders, stream, context, key = jax.tree.map(lambda leaf: leaf.value, primals)
    # Static, and so saved by its presence alone: whether the gradient of an input is wanted.
    wanted = [() if leaf.perturbed else None for leaf in (primals[3], *primals[4])]

    def run(x: jax.Array, each: Each) -> tuple[jax.Array, list[jax.Array]]:
        out, _, saved = _differentiated(blocks, stored, context, key, each, x)
        return out, saved

    out, saved = lax.scan(run, stream, (_indices(orders), orders))
    return out, (wanted, stored, orders, context, key, saved)


def _differentiated(
    blocks: SampledBlocks,
    stored: Params,
    context: Context,
    key: jax.Array | None,
    each: Each,
    x: jax.Array,
    saved: list[jax.Array] | None = None,
) -> tuple[jax.Array, Callable[..., Any], list[jax.Array]]:
    """Differentiate a block by those of its parameters that train somewhere, and by its inputs.

    Args:
        blocks, stored, context, key: see `run_scan`.
        each: the block's index and positions.
        x: the stream that enters it; with `saved`, any array like that.
        saved: what an earlier call saved: nothing of the block is then computed again.

    Returns:
        The stream after it, its pullback, and the residuals that are no argument of the scan.
    """
    index, positions = each
    values, numbers = blocks.at(stored, positions, index)
    own = {path: values[path] for path in blocks.sampled}

    def run(own: Params, x: jax.Array, context: Context) -> jax.Array:
        return blocks.step({**values, **own}, x, context, key, index, numbers)

    out, pull = jax.vjp(run, own, x, context)
    arguments = {id(leaf) for leaf in jax.tree.leaves((values, context, key))}
    leaves, structure = jax.tree.flatten(pull)
    if saved is None:
        return out, pull, [leaf for leaf in leaves if id(leaf) not in arguments]
    known = iter(saved)
    leaves = [leaf if id(leaf) in arguments else next(known) for leaf in leaves]
    return out, jax.tree.unflatten(structure, leaves), saved


def _backward(blocks: SampledBlocks, residuals: Any, d_out: jax.Array) -> tuple[Any, ...]:
    """Pull a gradient back through the blocks, each as far as something needs it."""
    wanted, stored, orders, context, key, saved = residuals
    d_trained = {
        path: jnp.zeros((number, *stored[path].shape[1:]), stored[path].dtype)
        for path, number in blocks.sampled.items()
    }
    d_context = [
        jnp.zeros_like(array) if one is not None else None
        for one, array in zip(wanted[1:], context, strict=True)
    ]

    def run(carry: Any, each: Any) -> tuple[Any, None]:
        index, positions, case, own_saved = each

        def pull_back(carry: Any, *, to_input: bool, to_own: bool) -> Any:
            d_x, d_context, d_trained = carry
            _, pull, _ = _differentiated(
                blocks, stored, context, key, (index, positions), d_x, own_saved
            )
            d_own, d_input, d_read = pull(d_x)
            d_context = [
                None if total is None else total + more
                for total, more in zip(d_context, d_read, strict=True)
            ]
            if to_own:
                d_trained = {
                    path: _placed_in(total, d_own[path], positions[path], bool(blocks.gates))
                    for path, total in d_trained.items()
                }
            return d_input if to_input else d_x, d_context, d_trained

        ways: dict[int, Callable[[Any], Any]] = {
            NOTHING: lambda carry: carry,
            INPUT: partial(pull_back, to_input=True, to_own=False),
            BOTH: partial(pull_back, to_input=True, to_own=True),
            OWN: partial(pull_back, to_input=False, to_own=True),
        }
        return lax.switch(case, [ways[one] for one in sorted(ways)], carry), None

    cases = _cases(blocks, orders, any(one is not None for one in wanted))
    with jax.default_matmul_precision(blocks.precision):
        (d_stream, d_context, d_trained), _ = lax.scan(
            run,
            (d_out, d_context, d_trained),
            (_indices(orders), orders, cases, saved),
            reverse=True,
        )
    return d_trained, None, None, None if wanted[0] is None else d_stream, d_context, None


def _placed_in(
    total: jax.Array, gradient: jax.Array, position: jax.Array, sometimes: bool
) -> jax.Array:
    """Put a gradient at its position: `[sampled, ...]`.

    Args:
        total: with those of the blocks above.
        gradient: of one block.
        position: of the block; beyond the sampled ones it has none.
        sometimes: whether that may be.
    """

    def put(total: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(total, gradient, position, 0)

    if not sometimes:
        return put(total)
    return lax.cond(position < len(total), put, lambda same: same, total)


def _cases(blocks: SampledBlocks, orders: Mapping[str, jax.Array], to_bottom: bool) -> jax.Array:
    """Say what the backward pass of each block computes: `[blocks]` int32.

    Args:
        blocks: what they are.
        orders: path -> `[blocks]`, the position of each.
        to_bottom: whether something below the blocks needs a gradient too.
    """
    trains = reduce(
        operator.or_, [orders[path] < number for path, number in blocks.sampled.items()]
    )
    cases = jnp.where(trains, BOTH, INPUT)
    if to_bottom:
        return cases
    lowest, indices = jnp.argmax(trains), _indices(orders)
    return jnp.where(indices < lowest, NOTHING, jnp.where(indices == lowest, OWN, cases))


run_scan.defvjp(_forward, _backward, symbolic_zeros=True)
