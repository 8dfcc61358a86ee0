"""Matmul FLOPs that a program executes on given arrays: each conditional by the branch it takes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from jaxft.engine.cost import _dot_flops as dot_flops


def executed_flops(function: Callable, *arrays: Any) -> int:
    """Run a function operation by operation, and count its matmuls, 2 per multiply-add.

    Args:
        function: any traceable function.
        arrays: its arguments.
    """
    traced = jax.make_jaxpr(function)(*arrays)
    jaxpr, used = dce_jaxpr(traced.jaxpr, True)
    values = [leaf for leaf, one in zip(jax.tree.leaves(arrays), used, strict=True) if one]
    counter = _Counter()
    counter.run(jaxpr, traced.consts, values)
    return counter.flops


class _Counter:
    def __init__(self) -> None:
        self.flops = 0

    def run(self, jaxpr: Jaxpr, consts: list, arguments: list) -> list:
        known = dict(zip(jaxpr.constvars, consts, strict=True))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def read(one: Any) -> Any:
            return one.val if isinstance(one, Literal) else known[one]

        for equation in jaxpr.eqns:
            values = [read(one) for one in equation.invars]
            out = self.equation(equation, values)
            known |= dict(zip(equation.outvars, out, strict=True))
        return [read(one) for one in jaxpr.outvars]

    def closed(self, jaxpr: Any, arguments: list) -> list:
        if isinstance(jaxpr, ClosedJaxpr):
            return self.run(jaxpr.jaxpr, jaxpr.consts, arguments)
        return self.run(jaxpr, [], arguments)

    def equation(self, equation: Any, values: list) -> list:
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self.scan(params, values)
        if name == "cond":
            if params.get("branches_platforms"):
                return self.closed(
                    params["branches"][_cpu(params["branches_platforms"])], values[1:]
                )
            branch = int(np.clip(int(values[0]), 0, len(params["branches"]) - 1))
            return self.closed(params["branches"][branch], values[1:])
        if name == "platform_index":
            return [np.int32(_cpu(params["platforms"]))]
        for inner in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if inner in params:
                return self.closed(params[inner], values)
        if name == "dot_general":
            self.flops += dot_flops(equation)
        out = equation.primitive.bind(*values, **params)
        return list(out) if equation.primitive.multiple_results else [out]

    def scan(self, params: dict, values: list) -> list:
        if "num_consts" in params:
            fixed, carried = params["num_consts"], params["num_carry"]
        else:  # jax 0.12
            fixed, carried, _ = map(len, params["ft_in"].unpack())
        consts, carry = values[:fixed], values[fixed : fixed + carried]
        stacked, made = values[fixed + carried :], []
        order = range(params["length"])
        for index in reversed(order) if params["reverse"] else order:
            out = self.closed(params["jaxpr"], [*consts, *carry, *(one[index] for one in stacked)])
            carry = out[:carried]
            made.append(out[carried:])
        made = made[::-1] if params["reverse"] else made
        return [*carry, *(jax.numpy.stack(one) for one in zip(*made, strict=True))]


def _cpu(platforms: Any) -> int:
    named = [index for index, names in enumerate(platforms) if names and "cpu" in names]
    return named[0] if named else len(platforms) - 1
