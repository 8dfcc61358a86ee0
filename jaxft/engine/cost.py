"""Cost of a step: FLOPs counted from its jaxpr.

XLA's own count ignores the trip counts of loops, so matmuls are counted where the count is exact:
each `dot_general` in the jaxpr (of experts each `ragged_dot_general`, whose rows meet one expert),
times the trip counts of the scans around it. The name stack of
the program assigns each to a segment of the model (`transformer_blocks.segment`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from jaxft.engine.setup import PhaseSetup, Setup, objective_of
from jaxft.models.layers.math import WEIGHT_GRADIENT
from jaxft.models.layers.partition import shared_by
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute, Tower
from jaxft.tree import split as split_tree

# Tracing a large model takes seconds, and a run asks for the same counts several times.
_COUNTED: WeakKeyDictionary[Setup, dict[Any, Tally]] = WeakKeyDictionary()

FORWARD, INPUT, WEIGHT = "forward", "input_gradient", "weight_gradient"
LOSS = "loss"  # the segment of matmuls outside every part of the model

Tally = Counter[tuple[str, str]]  # (segment, one of the three) -> FLOPs


def count_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """Count the floating point operations of a function's matmuls, 2 per multiply-add.

    Args:
        function: any traceable function; a jitted one is counted through.
        *args: arrays or `ShapeDtypeStruct`s.
        **kwargs: the same, by name.
    """
    return tally_flops(function, *args, **kwargs).total()


def tally_flops(function: Callable, *args: Any, **kwargs: Any) -> Tally:
    """Count them by segment of the model and by purpose; see `count_flops`."""
    return tally_program(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def tally_program(jaxpr: Jaxpr) -> Tally:
    """Count them in a traced function; recomputation counts again."""
    # XLA removes dead code, such as most of the stem of a cached trunk.
    return _tally(dce_jaxpr(jaxpr, True)[0], "")


def _tally(jaxpr: Jaxpr, around: str) -> Tally:
    """Count the matmuls of a program inside the scope named `around`."""
    tally: Tally = Counter()
    for equation in jaxpr.eqns:
        tally.update(_tally_equation(equation, f"{around}/{equation.source_info.name_stack}"))
    return tally


def _tally_equation(equation: JaxprEqn, name: str) -> Tally:
    if equation.primitive.name == "dot_general":
        return Counter({(_segment(name), _purpose(name, equation)): _dot_flops(equation)})
    if equation.primitive.name == "ragged_dot_general":
        return Counter(
            {(_segment(name), _ragged_purpose(name, equation)): _own_flops(name, equation)}
        )
    if equation.primitive.name == "conv_general_dilated":
        return _tally_convolution(name, equation)
    inner = [_tally(jaxpr, name) for jaxpr in sub_jaxprs(equation)]
    if equation.primitive.name == "cond":  # one branch runs
        return max(inner, key=Counter.total, default=Counter())
    times = 1
    if equation.primitive.name == "scan":
        times = equation.params["length"]
    elif equation.primitive.name == "pallas_call":  # the kernel runs once per grid cell
        times = math.prod(equation.params["grid_mapping"].grid)
    elif equation.primitive.name == "shard_map":  # every device runs it
        times = equation.params["mesh"].size
    whole: Tally = Counter()
    for part in inner:
        whole.update({of: times * flops for of, flops in part.items()})
    return whole


def _segment(name: str) -> str:
    """Return the segment of the model that a name stack belongs to."""
    named = re.findall(r"\[([^\]]+)\]", name.replace(WEIGHT_GRADIENT, ""))
    return named[0] if named else LOSS


def _purpose(name: str, equation: JaxprEqn) -> str:
    """Classify a matmul: jax names the backward pass `transpose`."""
    if "transpose(" not in name:
        return FORWARD
    (contract, _), (batch, _) = equation.params["dimension_numbers"]
    # Only the gradient of a tied embedding contracts over two axes, rows and positions, without a
    # batch axis: the products of attention have one, the heads.
    weight = WEIGHT_GRADIENT in name or (len(contract) > 1 and not batch)
    return WEIGHT if weight else INPUT


def sub_jaxprs(equation: JaxprEqn) -> list[Jaxpr]:
    jaxprs = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                jaxprs.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                jaxprs.append(item)
    return jaxprs


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


def _tally_convolution(name: str, equation: JaxprEqn) -> Tally:
    """Count those of a convolution, without the products with zeros between dilated pixels.

    That of a kernel's gradient has the image on its right side.
    """
    numbers = equation.params["dimension_numbers"]
    shapes: list[Any] = [variable.aval for variable in (equation.invars[1], *equation.outvars)]
    right, out = (shape.shape for shape in shapes)
    flops = 2 * math.prod(out) * math.prod(right) // right[numbers.rhs_spec[0]]
    kernel = math.prod(right[axis] for axis in numbers.rhs_spec[2:])
    backward = WEIGHT if kernel > math.prod(out[axis] for axis in numbers.out_spec[2:]) else INPUT
    purpose = backward if "transpose(" in name else FORWARD
    return Counter({(_segment(name), purpose): flops // math.prod(equation.params["lhs_dilation"])})


def _ragged_purpose(name: str, equation: JaxprEqn) -> str:
    """Classify a ragged matmul: that of a weight's gradient contracts over the rows."""
    if "transpose(" not in name:
        return FORWARD
    by_group = equation.params["ragged_dot_dimension_numbers"].rhs_group_dimensions
    return INPUT if by_group else WEIGHT


def _own_flops(name: str, equation: JaxprEqn) -> int:
    """Count those of a ragged matmul, in which each row meets one group: that of its expert."""
    shapes: list[Any] = [variable.aval for variable in (*equation.invars[:2], *equation.outvars)]
    left, right, out = (shape.shape for shape in shapes)
    columns = right[-1] if len(right) == len(left) else out[-1]
    return 2 * math.prod(left) * columns // shared_by(name)


def step_flops(setup: Setup, now: PhaseSetup) -> dict[str, int]:
    """Count the matmul FLOPs of one training step, with nothing run or compiled.

    Returns:
        `forward`: the forward pass; `step`: the step under the LayerTable; `full`: the step with
        nothing frozen; `cached`: the step with a cached trunk, the same as `step` where there is
        no trunk.
    """
    batch, names, every = batch_shapes(setup), now.table.trainable, tuple(setup.model.params)
    tally = gradient_tally(setup, names, batch)
    trunk = trunk_shapes(setup.model, now.compute, batch)
    step = tally.total()
    return {
        "forward": sum(flops for (_, purpose), flops in tally.items() if purpose == FORWARD),
        "step": step,
        "full": step if set(names) == set(every) else gradient_flops(setup, every, batch),
        "cached": gradient_flops(setup, names, batch | trunk) if trunk else step,
    }


def gradient_flops(
    setup: Setup, names: tuple[str, ...], batch: dict[str, jax.ShapeDtypeStruct]
) -> int:
    """Count the matmul FLOPs of the loss and its gradient; see `gradient_tally`."""
    return gradient_tally(setup, names, batch).total()


def gradient_tally(
    setup: Setup, names: tuple[str, ...], batch: dict[str, jax.ShapeDtypeStruct]
) -> Tally:
    """Count the matmul FLOPs of the loss and its gradient, by segment and purpose.

    Args:
        setup: the run.
        names: the parameters that are differentiated.
        batch: the shapes of the batch.
    """
    known = _COUNTED.setdefault(setup, {})
    key = (tuple(names), tuple((name, a.shape, a.dtype) for name, a in sorted(batch.items())))
    if key not in known:
        known[key] = _count_gradient(setup, names, batch)
    return known[key]


def _count_gradient(
    setup: Setup, names: tuple[str, ...], batch: dict[str, jax.ShapeDtypeStruct]
) -> Tally:
    compute = dataclasses.replace(setup.compute, trainable=frozenset(names), remat="none")
    objective = objective_of(setup, compute)
    trainable, frozen = split_tree(param_shapes(setup.model, compute.dtype), names)

    def loss(trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> jax.Array:
        return objective({**frozen, **trainable}, batch, key)["loss"][0]

    return tally_flops(jax.value_and_grad(loss), trainable, frozen, batch, jax.random.key(0))


def segment_flops(setup: Setup, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Count the FLOPs of a step in each segment of the model, from the input up.

    A segment is a tower's embeddings, consecutive blocks that are all frozen or all trained, its
    top, or everything outside the towers. The rows add up to the step.

    Args:
        setup: the run.
        names: the parameters that train.

    Returns:
        Rows of `segment` and FLOPs: `forward`; `input_gradient`, needed wherever something below
        trains; `weight_gradient`, of the parameters that train in this segment.
    """
    tally = gradient_tally(setup, names, batch_shapes(setup))
    segments = dict.fromkeys(segment for segment, purpose in tally if purpose == FORWARD)
    return [
        {"segment": segment}
        | {purpose: tally[segment, purpose] for purpose in (FORWARD, INPUT, WEIGHT)}
        for segment in segments
    ]


def lowest_block_flops(setup: Setup) -> int:
    """Count the matmul FLOPs of a step that trains only the lowest block of each tower."""
    towers = [part for part in setup.model.towers.values() if isinstance(part, Tower)]
    names = tuple(n for tower in towers for n, depth in tower.depths.items() if depth == 1)
    return gradient_flops(setup, names, batch_shapes(setup))


def batch_shapes(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a training batch."""
    examples, rows = setup.splits["train"].examples, setup.layout.rows
    # One row is enough: the images of a large batch would take gigabytes.
    first = examples.collate(setup.plan.batch(0)[:1], setup.layout.row_length)
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in first.items()
    }


def param_shapes(model: Model, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a model's parameters, in the compute type."""
    return {name: jax.ShapeDtypeStruct(leaf.shape, dtype) for name, leaf in model.params.items()}


def trunk_shapes(
    model: Model, compute: Compute, batch: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a cached trunk's outputs for a batch; empty without a trunk."""
    run = partial(model.trunk, compute=compute)
    return jax.eval_shape(run, param_shapes(model, compute.dtype), batch)


def trunk_saving(setup: Setup, compute: Compute, batch: dict[str, jax.ShapeDtypeStruct]) -> float:
    """Compute the share of a step's FLOPs that a cached trunk saves."""
    shapes = param_shapes(setup.model, compute.dtype)
    saved = count_flops(partial(setup.model.trunk, compute=compute), shapes, batch)
    return saved / gradient_flops(setup, trained_names(shapes, compute), batch)


def trained_names(names: Iterable[str], compute: Compute) -> tuple[str, ...]:
    """Select the parameters that train."""
    return tuple(n for n in names if compute.trainable is None or n in compute.trainable)
