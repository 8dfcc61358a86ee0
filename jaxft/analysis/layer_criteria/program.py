"""One pass over training batches: the sums of gradients and states that the criteria read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.data.batching.loader import batches
from jaxft.device.mesh import batch_sharding, in_turn, my_rows, place_batch, replicated
from jaxft.engine.cost import batch_shapes, param_shapes
from jaxft.engine.inputs import with_inputs
from jaxft.engine.setup import Setup, objective_of
from jaxft.layerwise.criteria.activations import (
    outlier_share,
    residual_contribution,
    state_cosine,
    summary_cosines,
)
from jaxft.layerwise.criteria.gradients import GradientSums
from jaxft.models.tower.observe import BlockStates, observe
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tree import split

Params = Mapping[str, jax.Array]
Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class StateMeasures:
    """Criteria of the activations, the mean of the batches.

    Attributes:
        residual, cosine, cls_cosine: prefix of a block's names (`blocks/3/`) -> value.
        outliers: matrix -> share of outliers.
    """

    residual: dict[str, float]
    cosine: dict[str, float]
    cls_cosine: dict[str, float]
    outliers: dict[str, float]


def training_batches(setup: Setup, count: int) -> Iterator[Batch]:
    """Yield the first `count` training batches of a run, on its devices."""
    index, processes = my_rows(setup.mesh)
    examples = setup.splits["train"].examples
    made = batches(
        setup.plan,
        examples.collate,
        0,
        count,
        process_index=index,
        process_count=processes,
        augment=examples.random,
    )
    for batch in made:
        yield place_batch(batch, batch_sharding(setup.mesh))


def gradient_sums(
    setup: Setup,
    params: Params,
    matrices: tuple[str, ...],
    count: int,
    advance: Callable[[], None],
) -> tuple[dict[str, GradientSums], dict[str, jax.Array]]:
    """Sum the gradients of the mean loss over batches, without dropout.

    Args:
        setup: the run.
        params: the flat dict.
        matrices: what is differentiated.
        count: batches.
        advance: called after each.

    Returns:
        Matrix -> its sums, and matrix -> its mean gradient, on the devices.
    """
    compute = replace(setup.compute, trainable=frozenset(matrices), remat="none")
    objective, whole = objective_of(setup, compute), replicated(setup.mesh)
    weights, fixed = split(params, matrices)

    def loss(weights: Params, fixed: Params, batch: Batch) -> jax.Array:
        total, weight = objective({**fixed, **weights}, batch, None)["loss"]
        return total / weight

    def add(sums: Any, weights: Params, fixed: Params, batch: Batch) -> Any:
        gradients = jax.grad(loss)(weights, fixed, batch)
        return {
            name: (sums[name][0] + one / count, sums[name][1] + _square(one))
            for name, one in gradients.items()
        }

    def squares(sums: Any, weights: Params) -> Any:
        return {
            name: (_square(mean), of / count, _square(weights[name]))
            for name, (mean, of) in sums.items()
        }

    kinds = {name: (setup.shardings[name], whole) for name in matrices}
    step = jax.jit(add, donate_argnums=0, out_shardings=kinds)
    sums = jax.jit(
        lambda weights: {
            name: (jnp.zeros_like(one, jnp.float32), jnp.float32(0))
            for name, one in weights.items()
        },
        out_shardings=kinds,
    )(weights)
    for batch in training_batches(setup, count):
        sums = in_turn(setup.mesh, step(sums, weights, fixed, batch))
        jax.block_until_ready(sums)  # the bar shows what is done, not what is queued
        advance()
    read = jax.device_get(jax.jit(squares, out_shardings=whole)(sums, weights))
    values = {
        name: GradientSums(float(mean), float(squares), float(weight), count)
        for name, (mean, squares, weight) in read.items()
    }
    return values, {name: mean for name, (mean, _) in sums.items()}


def state_measures(
    setup: Setup, params: Params, count: int, advance: Callable[[], None]
) -> StateMeasures:
    """Measure the states of every block on batches, without dropout.

    Args:
        setup: the run, without adapters.
        params: the flat dict.
        count: batches.
        advance: called after each.
    """
    compute = replace(setup.compute, remat="none")
    step = jax.jit(partial(_states, setup, compute), out_shardings=replicated(setup.mesh))
    totals: dict[str, dict[str, float]] = {one.name: {} for one in fields(StateMeasures)}
    for batch in training_batches(setup, count):
        for name, values in jax.device_get(step(params, batch)).items():
            for key, value in values.items():
                totals[name][key] = totals[name].get(key, 0.0) + float(value) / count
        advance()
    return StateMeasures(**totals)


def _states(setup: Setup, compute: Compute, params: Params, batch: Batch) -> dict[str, Any]:
    """Measure the blocks of all towers on one batch."""
    towers = list(observed(setup, compute, params, batch))
    blocks = {name: one for states in towers for name, one in states.items()}
    return {
        "residual": {
            name: residual_contribution(one.before, one.after, one.weights)
            for name, one in blocks.items()
        },
        "cosine": {
            name: state_cosine(one.before, one.after, one.weights) for name, one in blocks.items()
        },
        "cls_cosine": {name: value for states in towers for name, value in _cls(states).items()},
        "outliers": {
            kernel: outlier_share(params[kernel], squares)
            for one in blocks.values()
            for kernel, squares in one.squares.items()
        },
    }


def _cls(states: Mapping[str, BlockStates]) -> dict[str, jax.Array]:
    """Compare the summary of each block of a tower with those of the others."""
    blocks = list(states.values())
    cosines = summary_cosines([one.after for one in blocks], blocks[0].summary)
    return dict(zip(states, cosines, strict=True))


def observed(
    setup: Setup, compute: Compute, params: Params, batch: Batch
) -> Iterator[dict[str, BlockStates]]:
    """Yield the states of each tower's blocks, by the prefix of the block's names."""
    complete = with_inputs(batch, setup.splits["train"].examples.inputs)
    for tower in setup.model.towers.values():
        if isinstance(tower, Tower):
            states = observe(tower, params, complete, compute)
            yield {tower.block_prefix(index): one for index, one in enumerate(states)}


def tokens_of(setup: Setup) -> dict[str, int]:
    """Return the rows of each matrix's input in a training batch, with nothing run."""
    counts: dict[str, int] = {}

    def trace(params: Params, batch: Batch) -> jax.Array:
        for states in observed(setup, setup.compute, params, batch):
            for one in states.values():
                counts.update(one.tokens)
        return jnp.zeros(())

    jax.eval_shape(trace, param_shapes(setup.model, setup.compute.dtype), batch_shapes(setup))
    return counts


def _square(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x.astype(jnp.float32)))
