"""Outputs of a frozen model for each example, computed once and cached: references and teachers.

An objective that compares the model with a frozen one (the reference of DPO, the teacher of
distillation) reads the frozen model's outputs from the batch: `BoundTask.examples` computes them
here, and `Examples.collate` puts them under batch keys of the task. A step then costs nothing more,
and no second model takes memory during training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.cache import ExampleArrays, InMemory
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.models.values import read_value, with_values
from jaxft.tasks.parts.contract import Batch, Outputs, Params
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.tools import Tools

# The most examples and positions of a batch, which bound the memory of its logits, and the
# multiple to which its length is rounded up, so that one shape is compiled.
ROWS, POSITIONS, STRIDE = 32, 1024, 32
EXACT = Compute(precision="highest")

Arrays = Callable[[Outputs, Batch], dict[str, jax.Array]]


def frozen_outputs(
    tools: Tools,
    model: Model,
    examples: Examples,
    arrays: Arrays,
    *,
    kind: str,
    per_position: bool = False,
) -> ExampleArrays:
    """Run a frozen model over examples, unless an earlier run has.

    Args:
        tools: the cache.
        model: a described model, such as the initial `tools.model`; its weights are read when
            they are needed.
        examples: its inputs, which do not change with the epoch (`Examples.random` is false).
        arrays: outputs and batch -> the arrays to cache, name -> `[R, ...]` with one example per
            row; rows without an example are dropped.
        kind: a name of the arrays, which separates their cache entries from others.
        per_position: whether arrays are `[R, T, ...]`, of which an example's own positions are
            cached.

    Returns:
        For each example name -> `[1, ...]`, or `[length, ...]`.
    """
    assert not examples.random  # examples that change with the epoch have no constant outputs

    def rows() -> Iterator[dict[str, np.ndarray]]:
        return _rows(model, examples, arrays, per_position, weights=tools.weights)

    if not tools.weights:
        return InMemory(rows(), {})
    return tools.once(
        lambda: (rows(), {}),
        kind=kind,
        model=_digest(model),
        config=repr(model.config),
        head=model.head,
        adapter=repr(sorted(model.adapted.kernels.items())) if model.adapted else None,
        examples=examples.fingerprint,
    )


def _digest(model: Model) -> str:
    """Hash the model's initial values, read one after the other.

    Hashing values, not files, lets a run's own copy of its base share the cache entry.
    """
    digest = hashlib.sha256()
    for name in sorted(model.leaves):
        value = np.ascontiguousarray(read_value(model, name, model.params[name].sharding))
        digest.update(f"{name}{value.shape}{value.dtype}".encode())
        digest.update(value.data)
    return digest.hexdigest()


def _rows(
    model: Model, examples: Examples, arrays: Arrays, per_position: bool, *, weights: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of each example, in order; zeros of the same shapes without weights."""
    params = with_values(model).params if weights else model.params

    @jax.jit
    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return arrays(model.apply(params, batch, None, EXACT), batch)

    longest = int(examples.lengths.max())
    # An example of several texts may be longer than the positions of one.
    most = max(longest, model.max_positions)
    length = 1 if longest == 1 else min(round_up(longest, STRIDE), most)
    size = max(1, min(ROWS, POSITIONS // length))
    for first in range(0, len(examples), size):
        numbers = np.arange(first, min(first + size, len(examples)))
        index = np.full((size, 1), -1)
        index[: len(numbers), 0] = numbers
        batch = examples.collate(index, length)
        if weights:
            values = jax.device_get(run(params, batch))
        else:
            shapes = jax.eval_shape(run, params, batch)
            values = {name: np.zeros(one.shape, one.dtype) for name, one in shapes.items()}
        for row, number in enumerate(numbers):
            own = slice(0, int(examples.lengths[number]))
            yield {
                name: value[row, own] if per_position else value[row : row + 1]
                for name, value in values.items()
            }
