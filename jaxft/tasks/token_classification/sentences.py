"""Tagged sentences as token ids, with the word that begins in each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.models.layers.loss import UNSCORED
from jaxft.tasks.parts.token_examples import TokenExamples, row_targets


@dataclass(frozen=True)
class Sentences(TokenExamples):
    """Tagged sentences; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: `input_ids`, `token_type_ids` and `words`: the number of the word that begins in
            the token, or -1.
        tags: the tag ids of each sentence, `[words]` int32; None if rows have none.
    """

    tags: list[np.ndarray] | None

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        taken = self.tokens.take(index)
        batch = collate_rows(taken, index, row_length)
        if (tags := self.tags) is None:
            return batch

        def targets(number: int) -> np.ndarray:
            """Return the tag of each token that begins a word, else -1: `[tokens]` int32."""
            words = taken[number]["words"]
            return np.where(words >= 0, tags[number][words], UNSCORED).astype(np.int32)

        return batch | {"targets": row_targets(index, row_length, targets)}

    def by_word(self, number: int, values: np.ndarray, count: int, none: Any) -> list:
        """Return the values of a sentence's words, taken at their first tokens.

        Args:
            number: the sentence.
            values: a value per token, `[tokens or more]`.
            count: the number of words.
            none: the value of a word without a token, which is truncated or has no visible letter.
        """
        words = self.tokens[number]["words"]
        by_word = [none] * count
        for position in np.flatnonzero(words >= 0):
            by_word[words[position]] = values[position].item()
        return by_word
