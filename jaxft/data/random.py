"""What chance is drawn from where an example is another in each epoch: masks, augmentation.

A draw belongs to (seed, epoch, example) and to nothing else, so that neither rows nor workers nor
hosts change it, and a run that goes on in the middle of an epoch draws what it would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class Chance:
    """Numbers for one example, one after the other.

    Raw Philox output is the same in every numpy, which the methods of its generators need not be.

    Args:
        words: what tells this draw from every other.
    """

    def __init__(self, *words: int):
        self._raw = np.random.Philox(list(words))

    def uniform(self, count: int) -> np.ndarray:
        """Numbers of [0, 1): `[count]` float64."""
        return (np.atleast_1d(self._raw.random_raw(count)) >> np.uint64(11)) * 2.0**-53

    def below(self, limit: int, count: int) -> np.ndarray:
        """Whole numbers below `limit`: `[count]` int64."""
        return (self.uniform(count) * limit).astype(np.int64)

    def order(self, count: int) -> np.ndarray:
        """Return the numbers below `count` in an order by chance: `[count]` int64."""
        return np.argsort(self.uniform(count), kind="stable")


@dataclass(frozen=True)
class Draw:
    """One pass over the examples.

    Attributes:
        seed: the run's seed of data.
        epoch: from 0.
    """

    seed: int
    epoch: int

    def of(self, example: int) -> Chance:
        """Return what is drawn for one example."""
        return Chance(self.seed, self.epoch, example)


FIRST = Draw(0, 0)  # of a batch that is asked for without a draw: its shapes are wanted
