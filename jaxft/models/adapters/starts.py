"""Initial values of adapters that depend on the kernels beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxft.models.adapters.low_rank import MATRICES, ROWS, STARTS, Adapted, beside
from jaxft.models.adapters.token_rows import rows_of
from jaxft.models.layers.adapter import LowRank, column_lengths

ITERATIONS = 16  # PiSSA's own choice (pissa_niter_16)
OVERSAMPLING = 8


def with_starts(
    params: Mapping[str, jax.Array], adapted: Adapted, new: Collection[str]
) -> dict[str, jax.Array]:
    """Return the parameters with the initial values of new adapters that depend on their kernels.

    Magnitudes become the lengths of the columns that they stand for, PiSSA's matrices the
    kernel's largest components, and rows for tokens those of their table.

    Args:
        params: the flat dict.
        adapted: the adapters.
        new: the parameters that have no value of their own.
    """
    updated = dict(params)
    for kernel, low_rank in adapted.kernels.items():
        if low_rank.principal:
            updated |= _principal_start(params, kernel, low_rank)
        name = beside(kernel, "magnitude")
        if name in new:
            three = (params[kernel], *(params[beside(kernel, leaf)] for leaf in MATRICES))
            measure = jax.jit(column_lengths, static_argnums=3, out_shardings=params[name].sharding)
            updated[name] = measure(*three, low_rank.scale).astype(params[name].dtype)
    for table, ids in adapted.tokens.items():
        if (name := beside(table, ROWS)) in new:
            where = params[name].sharding
            read = jax.jit(partial(rows_of, table, ids=ids), out_shardings=where)
            updated[name] = read(params[table]).astype(params[name].dtype)
    return updated


def _principal_start(
    params: Mapping[str, jax.Array], kernel: str, low_rank: LowRank
) -> dict[str, jax.Array]:
    """Return both matrices of one kernel's adapter and, as equal numbers, their frozen starts."""
    names = [beside(kernel, leaf) for leaf in MATRICES]
    where = tuple(params[name].sharding for name in names)
    components = partial(principal_components, rank=low_rank.rank, scale=low_rank.scale)
    values = jax.jit(components, out_shardings=where)(params[kernel])
    starts = dict(zip((beside(kernel, leaf) for leaf in STARTS), values, strict=True))
    own = {name: value + 0 for name, value in zip(names, values, strict=True)}  # donated by a step
    return {name: value.astype(params[name].dtype) for name, value in (starts | own).items()}


def principal_components(kernel: jax.Array, rank: int, scale: float) -> tuple[jax.Array, jax.Array]:
    """Return A and B with A B scale close to a kernel's truncated singular value decomposition.

    By subspace iteration (Halko et al. 2011, https://arxiv.org/abs/0909.4061), which multiplies
    only. Both are rounded to bfloat16, so that a start that is stored in it is the same numbers.

    Args:
        kernel: [I, O].
        rank: r.
        scale: the factor on the product.

    Returns:
        [I, r] and [r, O], float32, each with the square roots of the singular values / scale.
    """
    with jax.default_matmul_precision("highest"):
        whole = kernel.astype(jnp.float32)
        width = min(rank + OVERSAMPLING, *whole.shape)
        guess = jax.random.normal(jax.random.key(0), (whole.shape[1], width))

        def refine(_: int, basis: jax.Array) -> jax.Array:
            left = jnp.linalg.qr(whole @ basis)[0]
            return jnp.linalg.qr(whole.T @ left)[0]

        basis = lax.fori_loop(0, ITERATIONS, refine, jnp.linalg.qr(guess)[0])
        left, values, right = jnp.linalg.svd(whole @ basis, full_matrices=False)
        roots = jnp.sqrt(values[:rank] / scale)
        a, b = left[:, :rank] * roots, roots[:, None] * (right[:rank] @ basis.T)
    return _rounded(a), _rounded(b)


def _rounded(values: jax.Array) -> jax.Array:
    return values.astype(jnp.bfloat16).astype(jnp.float32)
