"""Tuples of texts side by side in a row: an anchor, its positive, perhaps a negative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.tasks.embedding.section import EmbeddingSection
from jaxft.tasks.parts.examples import values_of
from jaxft.tasks.parts.labels import BadValue, number_of
from jaxft.tasks.parts.token_examples import GroupedExamples


@dataclass(frozen=True)
class TextTuples(GroupedExamples):
    """Tuples of K texts; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: the token ids of each text, row by row.
        numbers: `[examples, K]` int32: equal texts have equal numbers.
        scores: `[examples]` float32, the similarity of the first two texts; None without scores.
        teacher_scores: `[examples, K - 1]` float32, a cross-encoder's scores of the first text with
            each of the others; None without them.
    """

    numbers: np.ndarray
    scores: np.ndarray | None
    teacher_scores: np.ndarray | None = None

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
            `scores` `[R, S]` or `teacher_scores` `[R, S, K - 1]`.
        """
        batch = self.rows_of(index, row_length)
        batch["text_numbers"] = values_of(self.numbers, index)
        if self.scores is not None:
            batch["scores"] = values_of(self.scores, index)
        if self.teacher_scores is not None:
            batch["teacher_scores"] = values_of(self.teacher_scores, index)
        return batch


def numbered(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Number the texts of some rows, equal texts equally: `[rows, K]` int32."""
    known: dict[Any, int] = {}
    return np.array(
        [[known.setdefault(text, len(known)) for text in row] for row in rows], np.int32
    )


def similarity_of(row: Mapping[str, Any], section: EmbeddingSection) -> float:
    """Read the similarity of a row's two texts, scaled to 0 to 1; 0 where rows have none.

    Raises:
        BadValue: it is not a number from the lowest to the highest score.
    """
    column = section.score
    if column is None:
        return 0.0
    low, high = section.score_range
    value = number_of(row[column], column)
    if not low <= value <= high:
        raise BadValue(
            f"has {value:g} in {column}, which is not from {low:g} to {high:g}",
            "Set task.score_range to the lowest and the highest score.",
        )
    return (value - low) / (high - low)


def teacher_scores_of(row: Mapping[str, Any], section: EmbeddingSection) -> list[float]:
    """Read a cross-encoder's scores of a row's anchor with its other texts; `[]` without them.

    Raises:
        BadValue: a score is not a number.
    """
    return [number_of(row[column], column) for column in section.teacher_scores or ()]
