"""Examples, a source's rows as a task reads them: the abstract base of every task's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.data.image.images import ImageProcessor
from jaxft.data.random import FIRST_EPOCH, EpochRandom


class Examples(ABC):
    """A source's rows, ready for batching; pickled to the processes that make batches."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """`[examples]` positions that each takes in a row; ones if a row is one example."""
        return np.ones(len(self), np.int64)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes with everything the model's inputs depend on."""

    @abstractmethod
    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Make the arrays of one batch, under the names of `jaxft.models.layers.batch`.

        Args:
            index: `[rows, segments]` example numbers, -1 for none.
            row_length: positions per row.
            epoch_random: the epoch's random numbers; only random examples (`random`) read it.

        Returns:
            `example_ids` (the index) and `weights` (1 for an example) `[R, S]`, and the inputs of
            the model and the loss, `[R, ...]` each.
        """

    @property
    def labels(self) -> np.ndarray | None:
        """`[examples]` class ids, `[examples, C]` of 0 and 1, or `[examples]` numbers; or None."""
        return None

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts over all examples for the user: tokens, truncated, unknown."""
        return {}

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences on all examples for a person who starts a run; by default none."""
        return ()

    @property
    def remarks(self) -> Mapping[int, Mapping[str, Any]]:
        """Notes on single examples, added to their predictions."""
        return {}

    @property
    def rows(self) -> np.ndarray:
        """`[examples]` the source row of each."""
        return np.arange(len(self))

    @property
    def random(self) -> bool:
        """True if examples change with the epoch (augmentation, masking)."""
        return False

    @property
    def colors(self) -> ImageProcessor | None:
        """The processor whose colors the `input_ids` are; None if they are a tokenizer's."""
        return None

    def scored(self) -> Examples:
        """Return the examples of an evaluation, which do not change with the epoch."""
        return self

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Stem inputs that are expensive to make, such as decoded images: batch key -> row shape.

        `without` leaves them out of batches.
        """
        return {}

    def without(self, inputs: Collection[str]) -> Examples:
        """Return the examples without some of their `inputs`, so that nothing is decoded.

        A batch with the cached output of a model's trunk needs no images.
        """
        if missing := set(inputs) & set(self.inputs):
            raise NotImplementedError(f"{type(self).__name__} always has {sorted(missing)}")
        return self


def values_of(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Take the examples `[R, S]` of values `[examples, ...]`; 0 where there is no example."""
    present = (index >= 0).reshape(*index.shape, *[1] * (values.ndim - 1))
    return np.where(present, values[np.maximum(index, 0)], 0).astype(values.dtype)


def row_marks(index: np.ndarray) -> dict[str, np.ndarray]:
    """Return the `example_ids` and `weights` of a batch: `[R, S]` each.

    Args:
        index: `[R, S]` example numbers, -1 for none.
    """
    return {"weights": (index >= 0).astype(np.float32), "example_ids": index.astype(np.int32)}
