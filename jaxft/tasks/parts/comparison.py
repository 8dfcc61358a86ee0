"""Losses that compare the rows of a batch with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxft.tasks.parts.arrays import Batch, Outputs, Params


@dataclass(frozen=True)
class Comparison:
    """Outputs of a batch as a function of representations of its rows.

    With it, `train.accumulate` compares all rows of a step, not only those of a micro-batch.

    Args:
        names: the outputs, `[R, ...]` each, on which the loss depends: the representations.
        outputs: parameters, the representations of all rows, and the batch -> what
            `BoundTask.sums` reads.
    """

    names: tuple[str, ...]
    outputs: Callable[[Params, Outputs, Batch], Outputs]
