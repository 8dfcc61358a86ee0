"""What a step costs: FLOPs counted from its jaxpr.

XLA's own count takes a loop's body once and knows no trip counts, so matmuls are counted where
they are exact: each `dot_general` in the jaxpr, times the trips of the scans around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(function: Callable, *args, **kwargs) -> int:
    """Floating point operations of the matmuls that `function` runs, 2 a multiply-add.

    Args:
        function: any traceable function; a jitted one is counted through.
        args, kwargs: arrays or `ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    if equation.primitive.name == "dot_general":
        return _dot_flops(equation)
    inner = [_count(jaxpr) for jaxpr in _sub_jaxprs(equation)]
    if equation.primitive.name == "scan":
        return equation.params["length"] * sum(inner)
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
    left, right = (variable.aval.shape for variable in equation.invars[:2])
    (contract, contract_right), (batch, batch_right) = equation.params["dimension_numbers"]
    contracted = math.prod(left[i] for i in contract)
    batched = math.prod(left[i] for i in batch)
    rows = math.prod(left) // (contracted * batched)
    columns = math.prod(
        size for i, size in enumerate(right) if i not in (*contract_right, *batch_right)
    )
    return 2 * batched * rows * columns * contracted
