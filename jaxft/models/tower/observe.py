"""A tower's blocks run one by one, with what enters and leaves them and their linear maps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers.attention import Mask
from jaxft.models.layers.batch import segments_of
from jaxft.models.layers.cache import UNCACHED
from jaxft.models.layers.math import linear
from jaxft.models.layers.modules import Linear
from jaxft.models.tower.linears import with_linears
from jaxft.models.tower.run import run_stem, run_tower
from jaxft.models.tower.stretch import part_values
from jaxft.models.tower.tower import Compute, Params, Tower

Record = Callable[[str, jax.Array], None]  # a linear map's path in its block, and its input


@dataclass(frozen=True)
class BlockStates:
    """States of one block on a batch.

    Attributes:
        before, after: the stream that enters and that leaves it, `[B, T, D]`.
        weights: `[B, T]` float32, 0 for padding.
        summary: `[B, T]` float32, 1 where the tower's task reads an example: at its last token
            if the tower is causal, else at its first.
        squares: kernel -> `[I]`, the sum over positions of the squares of each input feature,
            without padding where the input has the stream's positions.
        products: kernel -> `[I, I]`, the sum over the same positions of x xᵀ, for input x.
        positions: kernel -> their number, float32.
        tokens: kernel -> the number of rows of the kernel's input, padding included.
    """

    before: jax.Array
    after: jax.Array
    weights: jax.Array
    summary: jax.Array
    squares: dict[str, jax.Array]
    products: dict[str, jax.Array]
    positions: dict[str, jax.Array]
    tokens: dict[str, int]


class ObservedLinear(nnx.Module):
    """Linear map that passes its input to a function, with the parameters of a plain one.

    Args:
        plain: the linear map in whose place it is.
        path: of that map in its block.
        record: called with the path and the input `[..., I]` while the block is traced.
    """

    def __init__(self, plain: Linear, path: str, record: Record):
        self.kernel, self.bias = plain.kernel, plain.bias
        self.path, self.record = path, record

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Map `x` as the plain one does; `key` is for an adapter in this one's place."""
        del key
        self.record(self.path, x)
        return linear(x, self.kernel[...], None if self.bias is None else self.bias[...])


def observe(
    tower: Tower, params: Params, batch: Mapping[str, jax.Array], compute: Compute
) -> list[BlockStates]:
    """Run a tower's stem and blocks without dropout, unrolled, and return each block's states.

    Under jit a state that is not read is not computed.

    Args:
        tower: without adapters.
        params: the flat dict.
        batch: what the stem reads; of a decoder, what its encoder reads too.
        compute: how to run.

    Raises:
        UserError: the stream is not one array.
    """
    if tower.reads is not None:
        encoded = run_tower(tower.reads, params, batch, None, compute)["last_hidden_state"]
        batch = tower.input_of(batch, encoded)
    states, compute = [], replace(compute, whole_rows=True)
    with jax.default_matmul_precision(compute.precision):
        stream, context = run_stem(tower, params, batch, compute)
        if not isinstance(stream, jax.Array):
            raise UserError(
                "The blocks of this model pass on several images, and what is measured of layers "
                "is of one stream.",
                "Choose its layers by depth or by name.",
            )
        segments = _segments(stream, batch)
        weights = (segments > 0).astype(jnp.float32)
        summary = _summary(segments, _is_causal(context))
        for index, part in enumerate(tower.blocks):
            inputs: dict[str, list[jax.Array]] = {}

            def record(path: str, x: jax.Array, inputs: dict = inputs) -> None:
                inputs.setdefault(f"{path}/kernel", []).append(x)

            names = tower.block_names(index)
            observed = with_linears(part, partial(ObservedLinear, record=record))
            block = observed.bind(part_values(params, names, compute), mesh=compute.mesh)
            numbers = {name: of[index] for name, of in tower.numbers.items()}
            after, _ = block(stream, context, None, UNCACHED, **numbers)
            named = {names[path]: xs for path, xs in inputs.items()}
            squares = _summed(_squares, named, weights)
            products = _summed(_products, named, weights)
            positions = _summed(_positions, named, weights)
            sums = squares, products, positions, _rows(named)
            states.append(BlockStates(stream, after, weights, summary, *sums))
            stream = after
    return states


def _segments(stream: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Return each position's example, 0 for padding: `[B, T]`."""
    if "input_ids" in batch and batch["input_ids"].shape == stream.shape[:2]:
        return segments_of(batch)
    return jnp.ones(stream.shape[:2], jnp.int32)


def _is_causal(context: Any) -> bool:
    """Return whether a mask of a tower's context hides later positions."""
    parts = jax.tree.leaves(context, is_leaf=lambda part: isinstance(part, Mask))
    return any(part.causal for part in parts if isinstance(part, Mask))


def _summary(segments: jax.Array, causal: bool) -> jax.Array:
    """Return 1 at the last position of each example if it is causal, else at the first."""
    outside = jnp.zeros_like(segments[:, :1])
    if causal:
        beside = jnp.concatenate([segments[:, 1:], outside], axis=1)
    else:
        beside = jnp.concatenate([outside, segments[:, :-1]], axis=1)
    return ((segments > 0) & (segments != beside)).astype(jnp.float32)


def _weighted(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return x `[..., I]` as float32 rows, 0 for padding if it has the stream's positions."""
    x = x.astype(jnp.float32)
    if x.shape[:-1] == weights.shape:
        x = x * weights[..., None]
    return x.reshape(-1, x.shape[-1])


def _summed(
    of: Callable[[jax.Array, jax.Array], jax.Array],
    inputs: Mapping[str, list[jax.Array]],
    weights: jax.Array,
) -> dict[str, jax.Array]:
    """Sum `of(x, weights)` over the inputs x of each kernel."""
    return {name: reduce(operator.add, [of(x, weights) for x in xs]) for name, xs in inputs.items()}


def _rows(inputs: Mapping[str, list[jax.Array]]) -> dict[str, int]:
    """Count the rows of each kernel's inputs."""
    return {name: sum(x.size // x.shape[-1] for x in xs) for name, xs in inputs.items()}


def _squares(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum the squares of each feature of x `[..., I]` over its positions: `[I]` float32."""
    return jnp.square(_weighted(x, weights)).sum(0)


def _positions(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Count the positions of x `[..., I]` that are no padding: a float32."""
    if x.shape[:-1] == weights.shape:
        return weights.sum()
    return jnp.float32(x.size // x.shape[-1])


def _products(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum x xᵀ over the positions of x `[..., I]`: `[I, I]` float32."""
    rows = _weighted(x, weights)
    return rows.T @ rows
