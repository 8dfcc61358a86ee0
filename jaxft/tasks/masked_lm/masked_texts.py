"""Texts with hidden tokens: at random per epoch, each in turn for scoring, or blanks of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.cache import fingerprint
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.text.masking import (
    UNSCORED,
    MaskedTokens,
    choose_tokens,
    mask_all,
    mask_tokens,
    most_masked,
)
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.parts.token_examples import CachedExamples, TokenExamples

STRIDE = 4  # the blanks of a row are padded to a multiple of it: few shapes to compile


def mask_of(tokenizer: Tokenizer) -> int:
    """Return the id of the mask token.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.mask_id is None:
        raise UserError(
            f"model.checkpoint: the tokenizer in {tokenizer.folder} has no mask token.",
            "Use a checkpoint pretrained by masked language modeling.",
        )
    return tokenizer.mask_id


@dataclass(frozen=True)
class MaskedTexts(TokenExamples):
    """Texts whose hidden tokens are sampled anew in each epoch; see `Examples`.

    Args:
        tokens: `input_ids`, `token_type_ids`, `words` and `spans` of each.
        tokenizer: the checkpoint's, with a mask token.
        share: the share of a text's tokens that is hidden.
        whole: whether whole words are hidden, with all of their tokens.
        at_once: the number of tokens hidden at a time in scoring.
    """

    tokenizer: Tokenizer
    share: float
    whole: bool
    at_once: int

    @property
    def random(self) -> bool:
        return True

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"])

    def scored(self) -> ScoredTexts:
        """Return the texts as an evaluation reads them: every token is hidden once."""
        inner = [int((self.tokens[n]["words"] >= 0).sum()) for n in range(len(self.tokens))]
        copies = [-(-count // self.at_once) for count in inner]
        texts = np.repeat(np.arange(len(inner)), copies)
        turns = np.concatenate([np.arange(count) for count in copies])
        return ScoredTexts(self.tokens, self.tokenizer, self.at_once, texts, turns)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate one batch: see `Examples.collate` and `with_hidden`."""
        mask, taken = mask_of(self.tokenizer), self.tokens.take(index)

        def hidden(number: int) -> MaskedTokens:
            one, random = taken[number], epoch_random.of(number)
            positions = choose_tokens(one["words"], self.share, self.whole, random)
            return mask_tokens(one["input_ids"], positions, mask, self.tokenizer.vocab_size, random)

        most = most_masked(self.share, row_length, index.shape[1])
        return with_hidden(collate_rows(taken, index, row_length), index, most, hidden)


@dataclass(frozen=True)
class ScoredTexts(CachedExamples):
    """Texts in scoring: an example is a text with some of its tokens hidden.

    Args:
        tokens, tokenizer, at_once: see `MaskedTexts`.
        texts: `[examples]` the text of each.
        turns: `[examples]` the first of its hidden tokens; the others follow at a stride of the
            text's number of turns.
    """

    tokenizer: Tokenizer
    at_once: int
    texts: np.ndarray
    turns: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths[self.texts]

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"])[self.texts]

    @property
    def counts(self) -> Mapping[str, int]:
        return {**self.tokens.meta["counts"], "texts": len(self.tokens)}

    @property
    def fingerprint(self) -> str:
        return f"{fingerprint(self.tokens)} {self.at_once} at once"

    def __len__(self) -> int:
        return len(self.texts)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        present = index >= 0
        texts = np.where(present, self.texts[np.maximum(index, 0)], -1)
        batch = collate_rows(self.tokens.take(texts), texts, row_length)
        batch["example_ids"] = index.astype(np.int32)
        most = min(self.at_once * index.shape[1], row_length)
        return with_hidden(batch, index, most, self._hidden)

    def first_positions(self, text: int) -> np.ndarray:
        """Return the first hidden token of each turn of a text: `[turns]`."""
        inner = np.flatnonzero(self.tokens[text]["words"] >= 0)
        return inner[: -(-len(inner) // self.at_once)]

    def _hidden(self, number: int) -> MaskedTokens:
        one = self.tokens[int(self.texts[number])]
        inner = np.flatnonzero(one["words"] >= 0)
        turns = -(-len(inner) // self.at_once)
        positions = inner[int(self.turns[number]) :: turns]
        return mask_all(one["input_ids"], positions, mask_of(self.tokenizer))


@dataclass(frozen=True)
class Blanks(TokenExamples):
    """Input texts with mask tokens, whose fillers are predicted.

    Args:
        tokens: see `MaskedTexts`.
        tokenizer: the checkpoint's.
    """

    tokenizer: Tokenizer

    def positions(self, number: int) -> np.ndarray:
        """Return the positions of a text's blanks: `[blanks]`."""
        return np.flatnonzero(self.tokens[number]["input_ids"] == mask_of(self.tokenizer))

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        most = max(len(self.positions(number)) for number in range(len(self))) * index.shape[1]
        most = min(-(-most // STRIDE) * STRIDE, row_length)

        def hidden(number: int) -> MaskedTokens:
            positions = self.positions(number)
            ids = self.tokens[number]["input_ids"][positions]
            return MaskedTokens(positions, ids, np.full(len(positions), UNSCORED, np.int32))

        batch = with_hidden(
            collate_rows(self.tokens.take(index), index, row_length), index, most, hidden
        )
        del batch["targets"]  # inputs have none
        return batch


def with_hidden(
    batch: dict[str, np.ndarray],
    index: np.ndarray,
    most: int,
    hidden: Callable[[int], MaskedTokens],
) -> dict[str, np.ndarray]:
    """Hide tokens of a batch.

    Args:
        batch: a batch of `collate_rows`; its `input_ids` are changed.
        index: `[rows, segments]` example numbers, -1 for none.
        most: M, the most tokens hidden in a row.
        hidden: an example's number -> its hidden tokens.

    Returns:
        The batch with `masked_positions` and `targets` `[R, M]` int32, padded with position 0 and
        target -1.
    """
    positions = np.zeros((len(index), most), np.int32)
    targets = np.full((len(index), most), UNSCORED, np.int32)
    for row, numbers in enumerate(index.tolist()):
        begin = 0
        for segment, number in enumerate(numbers):
            if number < 0:
                continue
            tokens = hidden(number)
            span = slice(begin, begin + len(tokens.places))
            positions[row, span] = batch["read_positions"][row, segment] + tokens.places
            batch["input_ids"][row, positions[row, span]] = tokens.ids
            targets[row, span] = tokens.targets
            begin = span.stop
    return batch | {"masked_positions": positions, "targets": targets}
