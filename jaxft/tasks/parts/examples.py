"""A source's rows as a task reads them: the abstract base of every task's examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxft.data.random import FIRST_EPOCH, EpochRandom


class Examples(ABC):
    """A source's rows, ready to be batched; pickled to where batches are made."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """`[examples]` positions that each takes in a row; ones where a row is an example."""
        return np.ones(len(self), np.int64)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes with anything that the model's inputs depend on."""

    @abstractmethod
    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """The arrays of one batch, under the names of `jaxft.models.layers.batch`.

        Args:
            index: `[rows, segments]` example numbers, -1 for none.
            row_length: positions a row.
            epoch_random: what random examples (`random`) are sampled with; others do not read it.

        Returns:
            `example_ids` (the index) and `weights` (1 for an example) `[R, S]`, and what the
            model and the loss read, `[R, ...]` each.
        """

    @property
    def labels(self) -> np.ndarray | None:
        """`[examples]` class ids, `[examples, C]` of 0 and 1, or `[examples]` numbers (float).

        None where there are none.
        """
        return None

    @property
    def counts(self) -> Mapping[str, int]:
        """What a person should know of the whole: tokens, truncated, unknown."""
        return {}

    @property
    def remarks(self) -> Mapping[int, Mapping[str, Any]]:
        """What a person should know of one example beside the model's prediction."""
        return {}

    @property
    def rows(self) -> np.ndarray:
        """`[examples]` the row of the source that each is from."""
        return np.arange(len(self))

    @property
    def random(self) -> bool:
        """Whether an example is another in each epoch (augmentation, masks)."""
        return False

    def scored(self) -> Examples:
        """The examples that an evaluation reads, which are always the same."""
        return self

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Inputs of the model's stems that cost time to make: batch key -> shape of a row's.

        Such are decoded images; token ids are not. `without` leaves them out of batches.
        """
        return {}

    def without(self, inputs: Collection[str]) -> Examples:
        """The same examples, whose batches bring none of these `inputs`: nothing is decoded.

        A batch that brings what a model's lower part made of its images needs no more of them.
        """
        if missing := set(inputs) & set(self.inputs):
            raise NotImplementedError(f"{type(self).__name__} always has {sorted(missing)}")
        return self


def row_marks(index: np.ndarray) -> dict[str, np.ndarray]:
    """The `example_ids` and `weights` of a batch: `[R, S]` each.

    Args:
        index: `[R, S]` example numbers, -1 for none.
    """
    return {"weights": (index >= 0).astype(np.float32), "example_ids": index.astype(np.int32)}
