"""What a step costs: FLOPs counted from its jaxpr.

XLA's own count takes a loop's body once and knows no trip counts, so matmuls are counted where
they are exact: each `dot_general` in the jaxpr, times the trips of the scans around it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from jaxft.engine.build import Build
from jaxft.tree import split as split_tree


def count_flops(function: Callable, *args, **kwargs) -> int:
    """Floating point operations of the matmuls that `function` runs, 2 a multiply-add.

    Args:
        function: any traceable function; a jitted one is counted through.
        args, kwargs: arrays or `ShapeDtypeStruct`s.
    """
    jaxpr = jax.make_jaxpr(function)(*args, **kwargs).jaxpr
    # What nothing reads XLA does not run: of a cached trunk's stem, all but the context.
    return _count(dce_jaxpr(jaxpr, True)[0])


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        return _dot_flops(equation)
    inner = [_count(jaxpr) for jaxpr in _sub_jaxprs(equation)]
    if equation.primitive.name == "scan":
        return equation.params["length"] * sum(inner)
    if equation.primitive.name == "pallas_call":  # a kernel, for each place of its grid
        return math.prod(equation.params["grid_mapping"].grid) * sum(inner)
    if equation.primitive.name == "shard_map":  # what every device runs
        return equation.params["mesh"].size * sum(inner)
    if equation.primitive.name == "cond":  # one branch runs
        return max(inner, default=0)
    return sum(inner)


def _sub_jaxprs(equation: JaxprEqn) -> list[Jaxpr]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def _dot_flops(equation: JaxprEqn) -> int:
    shapes: list[Any] = [variable.aval for variable in equation.invars]
    left, right = shapes[0].shape, shapes[1].shape
    (contract, contract_right), (batch, batch_right) = equation.params["dimension_numbers"]
    contracted = math.prod(left[i] for i in contract)
    batched = math.prod(left[i] for i in batch)
    rows = math.prod(left) // (contracted * batched)
    columns = math.prod(
        size for i, size in enumerate(right) if i not in (*contract_right, *batch_right)
    )
    return 2 * batched * rows * columns * contracted


def step_flops(built: Build) -> dict[str, int]:
    """The matmul FLOPs of one training step, with nothing run or compiled.

    Returns:
        `forward`: the forward pass; `step`: the step as the LayerTable has it; `full`: the step
        with nothing frozen; `cached`: the step with the trunk's output at hand, which is `step`
        where there is no trunk.
    """
    batch, params, names = batch_shapes(built), param_shapes(built), built.table.trainable
    return {
        "forward": count_flops(built.objective, params, batch, jax.random.key(0)),
        "step": gradient_flops(built, names, batch),
        "full": gradient_flops(built, tuple(params), batch),
        "cached": gradient_flops(built, names, batch | trunk_shapes(built, batch)),
    }


def gradient_flops(
    built: Build, names: tuple[str, ...], batch: dict[str, jax.ShapeDtypeStruct]
) -> int:
    """The matmul FLOPs of the loss and its gradient.

    Args:
        built: the run.
        names: what is differentiated.
        batch: the shapes of the batch.
    """
    compute = dataclasses.replace(built.compute, trainable=frozenset(names), remat="none")
    chosen = dataclasses.replace(built, compute=compute)
    trainable, frozen = split_tree(param_shapes(built), names)

    def loss(trainable, frozen, batch, key):
        return chosen.objective({**frozen, **trainable}, batch, key)["loss"][0]

    return count_flops(jax.grad(loss), trainable, frozen, batch, jax.random.key(0))


def batch_shapes(built: Build) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch."""
    examples = built.splits["train"].examples
    first = examples.collate(built.plan.batch(0), built.layout.row_length)
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in first.items()}


def param_shapes(built: Build) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of the parameters, in the compute type."""
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, built.compute.dtype)
        for name, leaf in built.model.params.items()
    }


def trunk_shapes(
    built: Build, batch: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what a batch brings beside its own where the trunk is cached; none without."""
    run = partial(built.model.trunk, compute=built.compute)
    return jax.eval_shape(run, param_shapes(built), batch)


def trunk_saving(built: Build, batch: dict[str, jax.ShapeDtypeStruct]) -> float:
    """The share of a step's FLOPs that is saved where the trunk is cached."""
    run = partial(built.model.trunk, compute=built.compute)
    saved = count_flops(run, param_shapes(built), batch)
    return saved / gradient_flops(built, built.table.trainable, batch)
