"""Tagged sentences as token ids, each with the word that it begins."""

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
    """Token ids, each with the word that it begins; see `jaxft.tasks.parts.contract.Examples`.

    Args:
        tokens: `input_ids`, `token_type_ids` and `words`: the number of the word that begins in
            the token, -1 where none does.
        tags: each sentence's tag ids, [words] int32; None where rows have none.
    """

    tags: list[np.ndarray] | None

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        if self.tags is None:
            return batch
        return batch | {"targets": row_targets(index, row_length, self._targets)}

    def _targets(self, number: int) -> np.ndarray:
        """The tag of each token of a sentence that begins a word: [tokens] int32."""
        assert self.tags is not None
        words = self.tokens[number]["words"]
        return np.where(words >= 0, self.tags[number][words], UNSCORED).astype(np.int32)

    def by_word(self, number: int, values: np.ndarray, count: int, none: Any) -> list:
        """What is said at a sentence's tokens, word by word.

        Args:
            number: the sentence.
            values: one for each token, [tokens or more].
            count: its words.
            none: for a word without a token: one that was cut off, or that has no visible letter.
        """
        words = self.tokens[number]["words"]
        found = [none] * count
        for place in np.flatnonzero(words >= 0):
            found[words[place]] = values[place].item()
        return found
