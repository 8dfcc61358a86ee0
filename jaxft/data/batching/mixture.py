"""Mixtures: epochs that sample examples by shares in place of reading each once.

The position in training stays the step: the sample of an epoch is a pure function of seed and
epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

STREAM = 7  # separates these random numbers from a plan's own, keyed by seed and epoch alone


@dataclass(frozen=True)
class Mixture:
    """An epoch's examples, sampled from parts by their shares.

    An epoch samples as many examples as there are, at least one of each part. A part that is due
    more than it has is read whole, as often as it fits; the remainder is sampled in turns: the
    part is sorted by length and cut into as many strata as are due, and each gives one of its
    members an epoch, all of them before any comes again. A slot is as long as its stratum's
    longest, so that the slots' lengths, and with them the number of steps, are the same in every
    epoch.

    Attributes:
        sizes: `[examples]` tokens of each example.
        parts: `[examples]` the part that each is of.
        weights: what each part counts; its share is its weight over the sum. Above 0.
    """

    sizes: np.ndarray
    parts: np.ndarray
    weights: tuple[float, ...]

    @cached_property
    def due(self) -> np.ndarray:
        """`[parts]` examples that an epoch samples of each."""
        shares = np.array(self.weights) / sum(self.weights) * len(self.sizes)
        due = np.floor(shares).astype(np.int64)
        largest_rest = np.argsort(due - shares, kind="stable")
        due[largest_rest[: len(self.sizes) - due.sum()]] += 1
        return np.maximum(due, 1)

    @cached_property
    def counts(self) -> np.ndarray:
        """`[parts]` examples of each."""
        return np.bincount(self.parts, minlength=len(self.weights))

    @cached_property
    def _whole(self) -> np.ndarray:
        """The examples that every epoch reads, as often as it does."""
        repeated = [
            np.repeat(self._members(part), self.due[part] // self.counts[part])
            for part in range(len(self.weights))
        ]
        return np.concatenate(repeated)

    @cached_property
    def _rests(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each part with a rest: its members by length, and where its strata begin and end."""
        rests = []
        for part, many in enumerate(self.counts.tolist()):
            rest = int(self.due[part]) % many
            if rest:
                members = self._members(part)
                members = members[np.argsort(self.sizes[members], kind="stable")]
                rests.append((members, np.arange(rest + 1) * many // rest))
        return rests

    @cached_property
    def lengths(self) -> np.ndarray:
        """`[slots]` the most tokens that an epoch's example in each slot has."""
        longest = [self.sizes[members[bounds[1:] - 1]] for members, bounds in self._rests]
        return np.concatenate([self.sizes[self._whole], *longest])

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Return the example in each slot in an epoch: `[slots]`."""
        examples = [self._whole]
        for number, (members, bounds) in enumerate(self._rests):
            sizes = np.diff(bounds)
            chosen = np.empty(len(sizes), np.int64)
            for size in np.unique(sizes).tolist():  # two sizes at most
                turn, member = divmod(epoch, size)
                random = np.random.Philox([seed, turn, number, STREAM])
                stratum = np.repeat(np.arange(len(sizes)), sizes)
                order = np.lexsort((random.random_raw(len(members)), stratum))
                own = sizes == size
                chosen[own] = members[order[bounds[:-1][own] + member]]
            examples.append(chosen)
        return np.concatenate(examples)

    def _members(self, part: int) -> np.ndarray:
        return np.flatnonzero(self.parts == part)


def drop_empty(parts: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, tuple[float, ...]]:
    """Drop the parts without examples, and renumber the others.

    Args:
        parts: `[examples]` the part that each is of.
        weights: of every part.
    """
    there, renumbered = np.unique(parts, return_inverse=True)
    return renumbered, tuple(float(weights[part]) for part in there.tolist())
