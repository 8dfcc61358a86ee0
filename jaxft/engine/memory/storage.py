"""Storage of the leaves that never train: in the compute type, or quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxft.config.load import Config
from jaxft.errors import UserError
from jaxft.models.adapters.low_rank import kernels_of
from jaxft.models.layers.partition import partition
from jaxft.models.model import Model
from jaxft.models.quantized import SMALLEST, Quantized, can_store, quantize


def quantized_leaves(config: Config, model: Model) -> dict[str, str]:
    """Choose the leaves that are stored quantized: name -> nf4 or int8.

    They are the kernels of the blocks' linear maps, of which none trains under an adapter;
    embeddings, heads, norms and biases are not.

    Raises:
        UserError: there are none.
    """
    kind = config.adapter.quantize
    if kind is None:
        return {}
    kernels = kernels_of(model.towers if model.adapted is None else model.adapted.plain)
    chosen: dict[str, str] = {name: kind for name, leaf in kernels.items() if can_store(leaf.shape)}
    if not chosen:
        raise UserError(
            f"adapter.quantize: no kernel of a block has a multiple of {SMALLEST} rows, so none "
            f"can be stored as {kind}.",
            "Leave adapter.quantize out.",
        )
    return chosen


def stored_shape(
    shape: Sequence[int], kind: str, dtype: str, axes: Sequence[str], mesh: jax.sharding.Mesh
) -> Quantized:
    """Describe a quantized kernel: shapes, dtypes and shardings, no values.

    Args:
        shape, axes: the kernel's.
        kind: nf4 or int8.
        dtype: the type of the numbers that it stands for.
        mesh: the devices.
    """
    whole = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    shapes = jax.eval_shape(partial(quantize, kind=kind), whole)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, partition(leaf.shape, axes, mesh))
        ),
        shapes,
    )


def store(value: jax.Array | Quantized, like: Any) -> jax.Array | Quantized:
    """Convert a leaf to its storage, on its devices.

    Args:
        value: the leaf's numbers, or what this function made of them.
        like: shapes, dtypes and shardings, as `abstract_frozen` gives them.
    """
    if not isinstance(like, Quantized) or isinstance(value, Quantized):
        return value.astype(like.dtype)
    return _quantizer(like.kind, like.dtype, like.codes.sharding, like.scales.sharding)(value)


@cache
def _quantizer(
    kind: str, dtype: str, codes: NamedSharding, scales: NamedSharding
) -> Callable[[jax.Array], Quantized]:
    """Return the one compiled function for kernels that are alike."""
    return jax.jit(
        lambda value: quantize(value, kind).astype(dtype),
        out_shardings=Quantized(codes, scales, kind, dtype),  # type: ignore[arg-type] # a tree
    )


def argument_shardings(
    shardings: Mapping[str, NamedSharding], quantized: Mapping[str, str]
) -> dict[str, NamedSharding | None]:
    """Return the shardings of parameters as arguments of a jitted function.

    That of a quantized leaf is None, which is what the argument has: it has several arrays.
    """
    return {name: None if name in quantized else where for name, where in shardings.items()}
