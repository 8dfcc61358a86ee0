"""Plans of batches: which examples make which rows of which step, as a pure function.

The position in training is the step number and nothing else. Every process computes the same plan
and takes its own rows, so a run resumes exactly on any number of processes and workers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.batching.mixture import Mixture
from jaxft.data.batching.packing import best_fit, cap_segments, count_rows, round_up
from jaxft.data.random import EpochRandom
from jaxft.durations import Growth
from jaxft.errors import UserError

ROW_STEP = 32  # rows are a multiple of this many positions
# Rounding the rows moves the examples a step by a third at most; where full rows would move them
# by more, rows hold fewer examples instead.
FULLER = 0.75
PLANS_KEPT = 2  # epochs whose plans are held: prefetching crosses from one into the next


@dataclass(frozen=True)
class Layout:
    """The shape of every training batch.

    Attributes:
        rows: rows a step, over all processes.
        row_length: positions a row.
        segments: the most examples in a row.
        examples_per_step: the mean number of true examples a step.
        padding: share of computed positions that hold no token.
        divide_by: what the positions of any row are a multiple of: a device has an equal part.
        growth: the steps with one micro-batch, with two, and so on, until there are all.
    """

    rows: int
    row_length: int
    segments: int
    examples_per_step: float
    padding: float
    divide_by: int = 1
    growth: Sequence[int] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, positions a row, and the most examples in one."""
        return self.rows, self.row_length, self.segments


def plan_rows(
    lengths: np.ndarray,
    batch_size: int,
    row_length: int | None,
    pack: bool,
    divide_by: int,
    positions_by: int = 1,
) -> Layout:
    """Return the shape of the training batches in which a step sees `batch_size` examples on
    average.

    Args:
        lengths: `[examples]` tokens of each training example.
        batch_size: examples a step.
        row_length: positions a row; None takes the shortest multiple of 32, and of `positions_by`,
            for the longest one.
        pack: whether several examples share a row.
        divide_by: what the number of rows must be a multiple of: devices that share the batch
            x accumulation x processes.
        positions_by: what the positions of a row must be a multiple of.

    Raises:
        UserError: an example that has no tokens or does not fit a row, or a batch size or a row
            length that cannot be divided.
    """
    longest = check_lengths(lengths)
    row_length = row_length or round_up(longest, math.lcm(ROW_STEP, positions_by))
    if row_length % positions_by:
        raise UserError(
            f"data.row_length {row_length} is not a multiple of {positions_by}, twice "
            "mesh.context.",
            f"The next that is one is {round_up(row_length, positions_by)}.",
        )
    if longest > row_length:
        raise UserError(
            f"data.row_length {row_length} is shorter than the longest example ({longest} tokens).",
            "Raise data.row_length, or cut the texts with data.max_length.",
        )
    if batch_size < divide_by or (not pack and batch_size % divide_by):
        raise UserError(
            f"data.batch_size {batch_size} does not divide over {divide_by} "
            "(devices that share the batch x train.accumulate x processes).",
            f"The nearest that does is {max(round(batch_size / divide_by), 1) * divide_by}.",
        )
    rows, segments = batch_size, 1
    if pack:
        segments = cap_segments(lengths, row_length)
        wanted = batch_size * count_rows(lengths, row_length, segments) / len(lengths)
        rows = max(round(wanted / divide_by), 1) * divide_by
        if wanted < FULLER * divide_by:  # full rows would hold too many examples a step
            segments = min(segments, batch_size // divide_by)
    plan = TrainPlan(lengths, 0, rows, row_length, segments)
    examples = len(lengths) / plan.steps_per_epoch
    return Layout(rows, row_length, segments, examples, 1 - plan.fill, positions_by)


def plan_epoch(
    lengths: np.ndarray, *, seed: int, epoch: int, rows: int, row_length: int, segments: int
) -> np.ndarray:
    """Return every batch of one epoch: each example once, in another order each epoch.

    Examples are packed best-fit, longest first. Which lengths share a row depends on the lengths
    alone, so every epoch has the same number of steps; which examples of a length go where, and
    the order of the rows, is random by seed and epoch. Rows that stay empty because the batches
    do not come out even are spread over the batches, no two in one while that can be.

    Args:
        lengths: `[examples]` tokens of each example, 1 to `row_length`.
        seed: of the run's data order.
        epoch: from 0.
        rows: rows a batch.
        row_length: positions a row.
        segments: the most examples in a row.

    Returns:
        `[batches, rows, segments]` int32 example numbers, -1 for none.
    """
    return TrainPlan(lengths, seed, rows, row_length, segments).epoch(epoch)


class TrainPlan:
    """The batches of a training run, by step; a pure function of its arguments.

    Args:
        lengths: `[examples]` tokens of each training example.
        seed: of the run's data order.
        rows: rows a step, over all processes.
        row_length: positions a row.
        segments: the most examples in a row.
        mixture: which examples an epoch reads, where not each once; `lengths` are its slots'.
        growth: `Layout.growth`. A step with some of its micro-batches reads the next ones of the
            epoch; a step may end one epoch and begin another.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        seed: int,
        rows: int,
        row_length: int,
        segments: int,
        mixture: Mixture | None = None,
        growth: Sequence[int] = (),
    ):
        self.lengths = lengths
        self.mixture = mixture
        self.growth = Growth(tuple(growth))
        self.seed = seed
        self.rows = rows
        self.row_length = row_length
        self.segments = segments
        self._slots, self._filled = best_fit(lengths, row_length, segments)
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of whole batches that read every example, or the mixture's sample, once."""
        return -(-self._filled // self.rows)

    @property
    def fill(self) -> float:
        """Share of an epoch's positions that hold tokens."""
        return int(self.lengths.sum()) / (self.steps_per_epoch * self.rows * self.row_length)

    def steps(self, epochs: float) -> int:
        """Return the steps in a number of epochs, to the nearest step."""
        return round(epochs * self.steps_per_epoch)

    def epoch_of(self, step: int) -> float:
        """Return the epochs completed after `step` steps."""
        return self.growth.before(step) / self.growth.parts / self.steps_per_epoch

    def share(self, step: int) -> float:
        """Return the share of a whole batch that the step after `step` steps reads."""
        return self.growth.parts_at(step) / self.growth.parts

    def row_length_at(self, step: int) -> int:
        """Return the positions per row, the same in every batch."""
        del step
        return self.row_length

    def epoch_random(self, step: int) -> EpochRandom:
        """Return the random numbers of the epoch in which a step begins."""
        number = self.growth.before(step) // self.growth.parts
        return EpochRandom(self.seed, number // self.steps_per_epoch)

    def batch(self, step: int) -> np.ndarray:
        """Return the example numbers of one step: `[rows, segments]` int32, -1 for none."""
        parts, first = self.growth.parts, self.growth.before(step)
        if parts == 1:
            return self._whole(step)
        batch = np.full((self.rows // parts, parts, self.segments), -1, np.int32)
        for offset in range(self.growth.parts_at(step)):  # row i x parts + k is of part k
            number, part = divmod(first + offset, parts)
            batch[:, offset] = self._whole(number).reshape(batch.shape)[:, part]
        return batch.reshape(self.rows, self.segments)

    def _whole(self, number: int) -> np.ndarray:
        """Return a whole batch by its number, of all epochs."""
        epoch, number = divmod(number, self.steps_per_epoch)
        if epoch not in self._epochs:
            self._epochs[epoch] = self.epoch(epoch)
            while len(self._epochs) > PLANS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[epoch][number]

    def epoch(self, epoch: int) -> np.ndarray:
        """Return every batch of one epoch: see `plan_epoch`."""
        # Raw Philox output is the same in every numpy, which its `permutation` need not be.
        random = np.random.Philox([self.seed, epoch])
        by_chance = np.argsort(random.random_raw(len(self.lengths)), kind="stable")
        longest_first = by_chance[np.argsort(-self.lengths[by_chance], kind="stable")]
        packed = np.full((self._filled, self.segments), -1, np.int32)
        packed.reshape(-1)[self._slots] = longest_first
        packed = packed[np.argsort(random.random_raw(self._filled), kind="stable")]
        if self.mixture is not None:  # so far numbers of slots
            sampled = self.mixture.epoch(self.seed, epoch).astype(np.int32)
            packed = np.where(packed >= 0, sampled[packed], -1)
        batches = np.full((self.steps_per_epoch, self.rows, self.segments), -1, np.int32)
        # Row i goes to batch i mod batches, so that the batches differ by one row at most.
        row, batch = np.divmod(np.arange(self._filled), self.steps_per_epoch)
        batches[batch, row] = packed
        return batches

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": OrderedDict()}  # a worker plans for itself


def check_lengths(lengths: np.ndarray) -> int:
    """Return the longest length; UserError where an example has no tokens."""
    empty = np.flatnonzero(lengths < 1)
    if len(empty):
        raise UserError(f"Example {empty[0]} has no tokens.", "Leave such rows out.")
    return int(lengths.max())
