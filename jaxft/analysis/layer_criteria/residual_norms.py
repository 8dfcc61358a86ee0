"""Residual norms of the Layer Card: gradients against the covariance of their matrix's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.analysis.layer_criteria.program import Batch, Params, observed, training_batches
from jaxft.device.mesh import fetch, in_turn, replicated
from jaxft.engine.setup import Setup
from jaxft.layerwise.criteria.gradients import residual_norm

BYTES = 2**30  # of the covariances that are held at once, on each device


def residual_norms(
    setup: Setup,
    params: Params,
    gradients: Params,
    count: int,
    advance: Callable[[], None],
) -> dict[str, float | None]:
    """Measure the residual norm of matrices, in as many passes as their covariances need.

    Args:
        setup: the run, without adapters.
        params: the flat dict.
        gradients: matrix -> its mean gradient over the batches.
        count: batches.
        advance: called after each batch of each pass.

    Returns:
        Matrix -> its residual norm; None for a matrix that is not called as a linear map.
    """
    norms: dict[str, float | None] = dict.fromkeys(gradients)
    for names in passes({name: one.shape[0] for name, one in gradients.items()}):
        sums = _covariances(setup, params, names, count, advance)
        for name in names:
            if name in sums:
                products, positions = sums[name]
                mean = fetch(setup.mesh, products) / float(fetch(setup.mesh, positions))
                norms[name] = residual_norm(fetch(setup.mesh, gradients[name]), mean)
    return norms


def passes(inputs: Mapping[str, int], most: int = BYTES) -> list[list[str]]:
    """Divide matrices, in their order, into passes whose covariances take at most `most` bytes.

    Args:
        inputs: matrix -> its number of inputs.
        most: bytes; a matrix that needs more has a pass of its own.
    """
    divided: list[list[str]] = []
    room = 0
    for name, features in inputs.items():
        need = 4 * features**2
        if not divided or need > room:
            divided.append([])
            room = most
        divided[-1].append(name)
        room -= need
    return divided


def _covariances(
    setup: Setup,
    params: Params,
    names: list[str],
    count: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Sum the products of the matrices' inputs over batches, and count their positions."""
    compute, whole = replace(setup.compute, remat="none"), replicated(setup.mesh)

    def add(sums: Any, params: Params, batch: Batch) -> Any:
        blocks = [
            one for states in observed(setup, compute, params, batch) for one in states.values()
        ]
        batch_sums = {
            name: (one.products[name], one.positions[name])
            for one in blocks
            for name in names
            if name in one.products
        }
        return batch_sums if sums is None else jax.tree.map(jnp.add, sums, batch_sums)

    first = jax.jit(partial(add, None), out_shardings=whole)
    step = jax.jit(add, donate_argnums=0, out_shardings=whole)
    sums: Any = None
    for batch in training_batches(setup, count):
        sums = first(params, batch) if sums is None else step(sums, params, batch)
        sums = in_turn(setup.mesh, sums)
        jax.block_until_ready(sums)
        advance()
    return dict(sums)
