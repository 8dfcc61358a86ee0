"""What a frozen model gives for each example, computed once and kept: references and teachers.

An objective that compares the model with one that never trains (the reference of DPO, the teacher
of distillation) reads that one's outputs from the batch: `BoundTask.examples` computes them here,
and `Examples.collate` puts them under batch keys of the task's own. A step then costs nothing more,
and no second model takes memory while the first one trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.cache import InMemory, Ragged
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.models.values import read_value, with_values
from jaxft.tasks.parts.contract import Batch, Outputs, Params
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.tools import Tools

# The most examples and positions of a batch, whose scores of words are held at once, and the
# multiple that its length is rounded up to: one shape to compile.
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
) -> Ragged | InMemory:
    """Run a frozen model over examples, unless an earlier run has.

    Args:
        tools: say where arrays are kept.
        model: a described model, such as `tools.model` as it begins; its weights are read when
            they are needed.
        examples: what it reads; each stays the same (`Examples.random` is false).
        arrays: outputs and batch -> what to keep, name -> `[R, ...]`, an example a row; a row
            that holds no example is left out.
        kind: tells what is kept apart from what other functions keep of the same examples.
        per_position: whether arrays are `[R, T, ...]`, of which an example's own positions are
            kept.

    Returns:
        Of each example name -> `[1, ...]`, or `[length, ...]`.
    """
    assert not examples.random  # what changes with each epoch cannot be computed once

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
    """A hash of the values that the model begins with, one read after the other.

    A run's own copy of its base is another file with the same values, and needs no other pass.
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
    """What is kept of each example, in order; zeros of the same shapes without weights."""
    params = with_values(model).params if weights else model.params

    @jax.jit
    def run(params: Params, batch: Batch) -> dict[str, jax.Array]:
        return arrays(model.apply(params, batch, None, EXACT), batch)

    longest = int(examples.lengths.max())
    # An example of several texts may be longer than the positions that each of them has.
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
