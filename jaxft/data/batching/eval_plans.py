"""Plans of the batches of an evaluation: which examples make which rows, each once."""

from __future__ import annotations

import math

import numpy as np

from jaxft.data.batching.packing import best_fit, bucket_edges, round_up
from jaxft.data.batching.plans import ROW_STEP, check_lengths
from jaxft.data.random import FIRST_EPOCH, EpochRandom


class EvalPlan:
    """The batches of one evaluation: every example once, the last batch of a shape padded.

    Attributes:
        fill: share of the positions that hold tokens.
    """

    def __init__(self, indices: list[np.ndarray], row_lengths: list[int], tokens: int):
        self._indices = indices
        self._row_lengths = row_lengths
        positions = sum(
            len(index) * length for index, length in zip(indices, row_lengths, strict=True)
        )
        self.fill = tokens / positions

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, step: int) -> np.ndarray:
        """Return the example numbers of one batch: `[rows, segments]` int32, -1 for none."""
        return self._indices[step]

    def row_length_at(self, step: int) -> int:
        """Return the positions per row of that batch."""
        return self._row_lengths[step]

    def epoch_random(self, step: int) -> EpochRandom:
        """Return the random numbers of the first epoch, always the same."""
        del step
        return FIRST_EPOCH


def plan_eval(
    lengths: np.ndarray, rows: int, row_length: int, segments: int | None, positions_by: int = 1
) -> EvalPlan:
    """Return the batches of one evaluation.

    Args:
        lengths: `[examples]` tokens of each example.
        rows: rows a batch, over all processes.
        row_length: positions a row; longer where an example needs it (a multiple of 32).
        segments: the most examples in a row; None puts one in each, in up to 6 row lengths: as
            few as keep padding at 15% of the positions, or the 6 best.
        positions_by: what the positions of a row must be a multiple of.
    """
    longest = check_lengths(lengths)
    if longest > row_length:
        row_length = round_up(longest, math.lcm(ROW_STEP, positions_by))
    indices: list[np.ndarray] = []
    row_lengths: list[int] = []
    if segments is not None:
        slots, filled = best_fit(lengths, row_length, segments)
        index = np.full((round_up(filled, rows), segments), -1, np.int32)
        index.reshape(-1)[slots] = np.argsort(-lengths, kind="stable")
        indices = list(index.reshape(-1, rows, segments))
        row_lengths = [row_length] * len(indices)
    else:
        below = 0
        for edge in bucket_edges(lengths, rows, row_length, positions_by):
            inside = np.flatnonzero((lengths > below) & (lengths <= edge))
            index = np.full((round_up(len(inside), rows), 1), -1, np.int32)
            index[: len(inside), 0] = inside
            indices += list(index.reshape(-1, rows, 1))
            row_lengths += [edge] * (len(index) // rows)
            below = edge
    return EvalPlan(indices, row_lengths, int(lengths.sum()))
