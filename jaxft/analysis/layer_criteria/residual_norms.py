"""Residual norms of the Layer Card: gradients against the covariance of their matrix's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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

    def measure(params: Params, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        return {
            name: (one.products[name], one.positions[name])
            for states in observed(setup, compute, params, batch)
            for one in states.values()
            for name in names
            if name in one.products
        }

    def add(sums: Any, params: Params, batch: Batch) -> Any:
        return jax.tree.map(jnp.add, sums, measure(params, batch))

    step = jax.jit(add, donate_argnums=0, out_shardings=whole)
    sums: Any = None
    for batch in training_batches(setup, count):
        if sums is None:
            shapes = jax.eval_shape(measure, params, batch)
            sums = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), whole)
        sums = in_turn(setup.mesh, step(sums, params, batch))
        jax.block_until_ready(sums)
        advance()
    return dict(sums)
