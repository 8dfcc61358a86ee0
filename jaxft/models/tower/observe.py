"""A tower's blocks run one by one, with what enters and leaves them and their linear maps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers.batch import segments_of
from jaxft.models.layers.cache import UNCACHED
from jaxft.models.layers.math import linear
from jaxft.models.layers.modules import Linear
from jaxft.models.tower.blocks import part_values
from jaxft.models.tower.linears import with_linears
from jaxft.models.tower.run import run_stem, run_tower
from jaxft.models.tower.tower import Compute, Params, Tower

Record = Callable[[str, jax.Array], None]  # a linear map's path in its block, and its input


@dataclass(frozen=True)
class BlockStates:
    """States of one block on a batch.

    Attributes:
        before, after: the stream that enters and that leaves it, `[B, T, D]`.
        weights: `[B, T]` float32, 0 for padding.
        squares: kernel -> `[I]`, the sum over positions of the squares of each input feature,
            without padding where the input has the stream's positions.
        tokens: kernel -> the number of rows of the kernel's input, padding included.
    """

    before: jax.Array
    after: jax.Array
    weights: jax.Array
    squares: dict[str, jax.Array]
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

    Args:
        tower: without adapters.
        params: the flat dict.
        batch: what the stem reads; of a decoder, what its encoder reads too.
        compute: how to run.
    """
    if tower.reads is not None:
        encoded = run_tower(tower.reads, params, batch, None, compute)["last_hidden_state"]
        batch = tower.input_of(batch, encoded)
    states = []
    with jax.default_matmul_precision(compute.precision):
        stream, context = run_stem(tower, params, batch, compute)
        weights = _position_weights(stream, batch)
        for index, part in enumerate(tower.blocks):
            inputs: dict[str, list[jax.Array]] = {}

            def record(path: str, x: jax.Array, inputs: dict = inputs) -> None:
                inputs.setdefault(f"{path}/kernel", []).append(x)

            names = tower.block_names(index)
            observed = with_linears(part, partial(ObservedLinear, record=record))
            block = observed.bind(part_values(params, names, compute), mesh=compute.mesh)
            numbers = {name: of[index] for name, of in tower.numbers.items()}
            after, _ = block(stream, context, None, UNCACHED, **numbers)
            squares = {
                names[p]: reduce(operator.add, [_squares(x, weights) for x in xs])
                for p, xs in inputs.items()
            }
            tokens = {names[p]: sum(x.size // x.shape[-1] for x in xs) for p, xs in inputs.items()}
            states.append(BlockStates(stream, after, weights, squares, tokens))
            stream = after
    return states


def _position_weights(stream: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Return 1 for each position of the stream that is no padding: `[B, T]` float32."""
    if "input_ids" in batch and batch["input_ids"].shape == stream.shape[:2]:
        return (segments_of(batch) > 0).astype(jnp.float32)
    return jnp.ones(stream.shape[:2], jnp.float32)


def _squares(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum the squares of each feature of x `[..., I]` over its positions: `[I]` float32."""
    squares = jnp.square(x.astype(jnp.float32))
    if x.shape[:-1] == weights.shape:
        squares = squares * weights[..., None]
    return squares.reshape(-1, x.shape[-1]).sum(0)
