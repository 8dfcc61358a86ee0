"""Adapters taken into the parameters that they are beside."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxft.models.adapters.low_rank import ROWS, Adapted, beside, is_adapter, matrices_of
from jaxft.models.adapters.token_rows import with_rows
from jaxft.models.layers.adapter import column_lengths, summed


def merge(params: Mapping[str, jax.Array], adapted: Adapted) -> dict[str, jax.Array]:
    """Return the parameters without adapters, which kernels and tables have taken in.

    Args:
        params: the flat dict.
        adapted: the adapters.
    """
    merged = {name: value for name, value in params.items() if not is_adapter(name)}
    with jax.default_matmul_precision("highest"):
        for name, low_rank in adapted.kernels.items():
            a, b = matrices_of(params, name, low_rank)
            whole = summed(params[name], a, b, low_rank.scale)
            if low_rank.dora:
                magnitude = params[beside(name, "magnitude")].astype(jnp.float32)
                whole *= magnitude / column_lengths(params[name], a, b, low_rank.scale)
            merged[name] = whole.astype(params[name].dtype)
    for name, ids in adapted.tokens.items():
        merged[name] = with_rows(name, jnp.asarray(params[name]), params[beside(name, ROWS)], ids)
    return merged
