"""Rows of one text, two or three, side by side: a text that is asked, and what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.cache import InMemory, Ragged, fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.tasks.parts.examples import Examples


@dataclass(frozen=True)
class TextTuples(Examples):
    """Token ids of each row's texts; see `jaxft.tasks.parts.contract.Examples`.

    An example's texts stand one after the other in a row, and none sees the other.

    Args:
        tokens: of each text, row by row.
        numbers: `[examples, K]` int32: equal texts have the same number.
        scores: `[examples]` float32, how alike its first two texts are; None where no one says.
    """

    tokens: Ragged | InMemory
    numbers: np.ndarray
    scores: np.ndarray | None

    @property
    def count(self) -> int:
        """K, the texts of an example."""
        return self.numbers.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths.reshape(-1, self.count).sum(axis=1)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """How many tokens were cut away of an example's texts, where any were."""
        found: dict[int, int] = {}
        for text, cut in self.tokens.meta["cut"].items():
            number = int(text) // self.count
            found[number] = found.get(number, 0) + cut
        return {number: {"cut": cut} for number, cut in found.items()}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.numbers)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """One batch: see `contract.Examples`.

        Returns:
            What `collate_rows` gives of `[R, S x K]` texts, `read_positions` of the first of each
            example; `text_numbers` `[R, S, K]`, 0 where there is none, and perhaps `scores`
            `[R, S]`.
        """
        there = index >= 0
        texts = np.where(there, index, 0)[..., None] * self.count + np.arange(self.count)
        texts = np.where(there[..., None], texts, -1).reshape(len(index), -1)  # [R, S x K]
        batch = collate_rows(self.tokens, texts, row_length)
        numbers = np.where(there[..., None], self.numbers[np.maximum(index, 0)], 0)
        batch |= {
            "read_positions": batch["read_positions"][:, :: self.count],
            "weights": there.astype(np.float32),
            "example_ids": index.astype(np.int32),
            "text_numbers": numbers.astype(np.int32),
        }
        if self.scores is not None:
            batch["scores"] = np.where(there, self.scores[np.maximum(index, 0)], 0)
        return batch


def numbered(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """A number for each text of some rows, the same for equal ones: `[rows, K]` int32."""
    known: dict[Any, int] = {}
    return np.array(
        [[known.setdefault(text, len(known)) for text in row] for row in rows], np.int32
    )
