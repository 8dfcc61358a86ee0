"""Tuples of texts side by side in a row: an anchor, its positive, perhaps a negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.tasks.parts.examples import values_of
from jaxft.tasks.parts.token_examples import GroupedExamples


@dataclass(frozen=True)
class TextTuples(GroupedExamples):
    """Tuples of K texts; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the token ids of each text, row by row.
        numbers: `[examples, K]` int32: equal texts have equal numbers.
        scores: `[examples]` float32, the similarity of the first two texts; None without scores.
    """

    numbers: np.ndarray
    scores: np.ndarray | None

    @property
    def count(self) -> int:
        return self.numbers.shape[1]

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """The number of truncated tokens of an example's texts, where there are any."""
        totals: dict[int, int] = {}
        for text, cut in self.tokens.meta["cut"].items():
            number = int(text) // self.count
            totals[number] = totals.get(number, 0) + cut
        return {number: {"cut": cut} for number, cut in totals.items()}

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate one batch: see `GroupedExamples.rows_of`.

        Returns:
            Its arrays, `text_numbers` `[R, S, K]`, 0 without example, and, if there are scores,
            `scores` `[R, S]`.
        """
        batch = self.rows_of(index, row_length)
        batch["text_numbers"] = values_of(self.numbers, index)
        if self.scores is not None:
            batch["scores"] = values_of(self.scores, index)
        return batch


def numbered(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Number the texts of some rows, equal texts equally: `[rows, K]` int32."""
    known: dict[Any, int] = {}
    return np.array(
        [[known.setdefault(text, len(known)) for text in row] for row in rows], np.int32
    )
