"""Random numbers of examples that change in each epoch: masks, augmentation.

They depend on (seed, epoch, example) and nothing else, so that rows, workers and hosts do not
change them, and a run resumed within an epoch gets the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class ExampleRandom:
    """The sequence of random numbers of one example.

    Raw Philox output is the same in every numpy, which the methods of its generators need not be.

    Args:
        words: the key of this sequence.
    """

    def __init__(self, *words: int):
        self._raw = np.random.Philox(list(words))

    def uniform(self, count: int) -> np.ndarray:
        """Return numbers in [0, 1): `[count]` float64."""
        return (np.atleast_1d(self._raw.random_raw(count)) >> np.uint64(11)) * 2.0**-53

    def below(self, limit: int, count: int) -> np.ndarray:
        """Return whole numbers below `limit`: `[count]` int64."""
        return (self.uniform(count) * limit).astype(np.int64)

    def order(self, count: int) -> np.ndarray:
        """Return a random permutation of the numbers below `count`: `[count]` int64."""
        return np.argsort(self.uniform(count), kind="stable")


@dataclass(frozen=True)
class EpochRandom:
    """The random numbers of all examples in one epoch.

    Attributes:
        seed: the run's data seed.
        epoch: from 0.
    """

    seed: int
    epoch: int

    def of(self, example: int) -> ExampleRandom:
        """Return the random numbers of one example."""
        return ExampleRandom(self.seed, self.epoch, example)


FIRST_EPOCH = EpochRandom(0, 0)  # for batches of which only the shapes matter
