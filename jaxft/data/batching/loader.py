"""Batches of a plan as arrays, prepared in advance by Grain.

Grain maps over step numbers, so the position is the step: no iterator state is saved, and any
number of processes and workers gives the same rows in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from absl import flags

from jaxft.data.batching.workers import watched
from jaxft.data.cache import Example
from jaxft.data.random import EpochRandom

Batch = dict[str, np.ndarray]
Collate = Callable[..., Batch]  # (index, row_length), with `augment` also the `EpochRandom`


class Plan(Protocol):
    """A plan of batches, which is cheap to pickle."""

    def batch(self, step: int) -> np.ndarray:
        """Return the example numbers of one batch: `[rows, segments]` int32, -1 for none."""

    def row_length_at(self, step: int) -> int:
        """Return the positions per row of that batch."""

    def epoch_random(self, step: int) -> EpochRandom:
        """Return the random numbers of the epoch of that batch."""


def batches(
    plan: Plan,
    collate: Collate,
    start: int,
    stop: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    augment: bool = False,
) -> Iterator[Batch]:
    """Yield this process's part of the batches `start` to `stop`, made ahead of time.

    Args:
        plan: which examples make each batch.
        collate: `[rows, segments]` example numbers and a row length -> arrays of those rows.
            Where there are workers it is pickled.
        start: the first step.
        stop: the step after the last.
        process_index: this process's number.
        process_count: processes that share each batch; each takes a block of its rows.
        workers: processes that make batches; 0 makes them in a thread, which for cached text is
            quickest. With workers the main module is imported again in each, so a script needs
            `if __name__ == "__main__":`.
        prefetch: batches made ahead (by each worker, where there are any).
        augment: examples change in each epoch (augmentation, masking): `collate` also takes the
            plan's `EpochRandom`.

    Returns:
        The batches in order; the same rows in the same order whatever the number of workers.

    Raises:
        ValueError: the rows do not divide over the processes.
        UserError: a worker died.
    """
    import grain

    rows = len(plan.batch(start)) if start < stop else process_count
    if rows % process_count:
        raise ValueError(f"{rows} rows do not divide over {process_count} processes")
    make = _MakeBatch(plan, collate, process_index, process_count, augment)
    steps = grain.MapDataset.range(stop).slice(slice(start, stop)).map(make)
    threads = min(prefetch, 1)
    made = steps.to_iter_dataset(grain.ReadOptions(threads, prefetch))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its flags when it starts workers
        options = grain.MultiprocessingOptions(workers, max(prefetch, 1))
        made = steps.to_iter_dataset(grain.ReadOptions(0, 0))
        made = made.mp_prefetch(options, worker_init_fn=_start_worker)
    iterator = iter(made)
    try:
        yield from watched(iterator) if workers else iterator
    finally:
        iterator.close()


def collate_rows(
    examples: Mapping[int, Example], index: np.ndarray, row_length: int, pad_id: int = 0
) -> Batch:
    """Return the arrays of some rows, without labels.

    Args:
        examples: `input_ids` and perhaps `token_type_ids` of each of them, by its number.
        index: `[rows, segments]` example numbers, -1 for none.
        row_length: positions a row.
        pad_id: fills `input_ids` where no token is.

    Returns:
        `input_ids`, `token_type_ids`, `position_ids`, `segment_ids` (1 and up inside examples, 0
        elsewhere) `[R, T]` int32; `read_positions` (an example's first token), `example_ids`
        `[R, S]` int32; `weights` (1 for an example) `[R, S]` float32.
    """
    rows, _ = index.shape
    ids = np.full((rows, row_length), pad_id, np.int32)  # [R, T]
    types, positions, owners = (np.zeros((rows, row_length), np.int32) for _ in range(3))
    read = np.zeros(index.shape, np.int32)  # [R, S]
    for row, numbers in enumerate(index.tolist()):
        begin = 0
        for segment, number in enumerate(numbers):
            if number < 0:
                continue
            example = examples[number]
            length = len(example["input_ids"])
            span = slice(begin, begin + length)
            ids[row, span] = example["input_ids"]
            types[row, span] = example.get("token_type_ids", 0)
            positions[row, span] = np.arange(length)
            owners[row, span] = segment + 1
            read[row, segment] = begin
            begin += length
    return {
        "input_ids": ids,
        "token_type_ids": types,
        "position_ids": positions,
        "segment_ids": owners,
        "read_positions": read,
        "weights": (index >= 0).astype(np.float32),
        "example_ids": index.astype(np.int32),
    }


@dataclass(frozen=True)
class _MakeBatch:
    """The function from a step to this process's rows of its batch."""

    plan: Plan
    collate: Collate
    process_index: int
    process_count: int
    augment: bool

    def __call__(self, step: int) -> Batch:
        index = self.plan.batch(step)  # [R, S]
        block = len(index) // self.process_count
        first = self.process_index * block
        mine, length = index[first : first + block], self.plan.row_length_at(step)
        return self.collate(mine, length, *([self.plan.epoch_random(step)] if self.augment else ()))


def _start_worker(worker: int, workers: int) -> None:
    """Keep a worker off the accelerator, which its parent uses."""
    del worker, workers
    jax.config.update("jax_platforms", "cpu")
