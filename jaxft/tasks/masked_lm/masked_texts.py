"""Texts with hidden tokens: hidden anew in each epoch, each in turn, or by whoever typed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.cache import InMemory, Ragged, fingerprint
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
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.token_examples import TokenExamples

STRIDE = 4  # blanks in a row are a multiple of so many: few shapes to compile


def mask_of(tokenizer: Tokenizer) -> int:
    """The id of the mask token.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.mask_id is None:
        raise UserError(
            f"model.checkpoint: the tokenizer in {tokenizer.folder} names no mask token.",
            "Take a checkpoint that was pretrained by masked language modelling.",
        )
    return tokenizer.mask_id


@dataclass(frozen=True)
class MaskedTexts(TokenExamples):
    """Texts whose tokens are hidden anew in each epoch; see `contract.Examples`.

    Args:
        tokens: `input_ids`, `token_type_ids`, `words` and `spans` of each.
        tokenizer: the checkpoint's, which has a mask token.
        share: of a text's tokens that is hidden.
        whole: whether words are hidden, with all of their tokens.
        at_once: how many tokens are hidden at a time where the texts are scored.
    """

    tokenizer: Tokenizer
    share: float
    whole: bool
    at_once: int

    @property
    def random(self) -> bool:
        return True

    def scored(self) -> ScoredTexts:
        """The same texts as an evaluation goes through them: every token is hidden once."""
        inner = [int((self.tokens[n]["words"] >= 0).sum()) for n in range(len(self.tokens))]
        copies = [-(-count // self.at_once) for count in inner]
        texts = np.repeat(np.arange(len(inner)), copies)
        turns = np.concatenate([np.arange(count) for count in copies])
        return ScoredTexts(self.tokens, self.tokenizer, self.at_once, texts, turns)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """One batch: see `contract.Examples`, and `with_hidden`."""

        mask = mask_of(self.tokenizer)

        def hidden(number: int) -> MaskedTokens:
            one, chance = self.tokens[number], epoch_random.of(number)
            places = choose_tokens(one["words"], self.share, self.whole, chance)
            return mask_tokens(one["input_ids"], places, mask, self.tokenizer.vocab_size, chance)

        most = most_masked(self.share, row_length, index.shape[1])
        return with_hidden(collate_rows(self.tokens, index, row_length), index, most, hidden)


@dataclass(frozen=True)
class ScoredTexts(Examples):
    """Texts as they are scored: an example is a text in which some tokens wait to be told.

    Args:
        tokens, tokenizer, at_once: see `MaskedTexts`.
        texts: `[examples]` the text that each is of.
        turns: `[examples]` which of its tokens are hidden: the turn's, and every so many after it
            as there are turns.
    """

    tokens: Ragged | InMemory
    tokenizer: Tokenizer
    at_once: int
    texts: np.ndarray
    turns: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths[self.texts]

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
        there = index >= 0
        texts = np.where(there, self.texts[np.maximum(index, 0)], -1)
        batch = collate_rows(self.tokens, texts, row_length)
        batch["example_ids"] = index.astype(np.int32)
        most = min(self.at_once * index.shape[1], row_length)
        return with_hidden(batch, index, most, self._hidden)

    def first_places(self, text: int) -> np.ndarray:
        """Of each turn of a text, the first token that is hidden: `[turns]`."""
        inner = np.flatnonzero(self.tokens[text]["words"] >= 0)
        return inner[: -(-len(inner) // self.at_once)]

    def _hidden(self, number: int) -> MaskedTokens:
        one = self.tokens[int(self.texts[number])]
        inner = np.flatnonzero(one["words"] >= 0)
        turns = -(-len(inner) // self.at_once)
        places = inner[int(self.turns[number]) :: turns]
        return mask_all(one["input_ids"], places, mask_of(self.tokenizer))


@dataclass(frozen=True)
class Blanks(TokenExamples):
    """Texts with the mask token in them; what belongs there is asked.

    Args:
        tokens: see `MaskedTexts`.
        tokenizer: the checkpoint's.
    """

    tokenizer: Tokenizer

    def places(self, number: int) -> np.ndarray:
        """Where a text's blanks are: `[blanks]`."""
        return np.flatnonzero(self.tokens[number]["input_ids"] == mask_of(self.tokenizer))

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        most = max(len(self.places(number)) for number in range(len(self))) * index.shape[1]
        most = min(-(-most // STRIDE) * STRIDE, row_length)

        def hidden(number: int) -> MaskedTokens:
            places = self.places(number)
            ids = self.tokens[number]["input_ids"][places]
            return MaskedTokens(places, ids, np.full(len(places), UNSCORED, np.int32))

        batch = with_hidden(collate_rows(self.tokens, index, row_length), index, most, hidden)
        del batch["targets"]  # what a person asks for, no one knows
        return batch


def with_hidden(
    batch: dict[str, np.ndarray],
    index: np.ndarray,
    most: int,
    hidden: Callable[[int], MaskedTokens],
) -> dict[str, np.ndarray]:
    """A batch in whose rows tokens are hidden.

    Args:
        batch: of `collate_rows`; its `input_ids` are changed.
        index: `[rows, segments]` example numbers, -1 for none.
        most: M, the most tokens that are hidden in a row.
        hidden: what is hidden of an example.

    Returns:
        The batch with `masked_positions` and `targets` `[R, M]` int32; where a row hides fewer,
        the rest are position 0 and the target -1.
    """
    places = np.zeros((len(index), most), np.int32)
    targets = np.full((len(index), most), UNSCORED, np.int32)
    for row, numbers in enumerate(index.tolist()):
        begin = 0
        for segment, number in enumerate(numbers):
            if number < 0:
                continue
            found = hidden(number)
            span = slice(begin, begin + len(found.places))
            places[row, span] = batch["read_positions"][row, segment] + found.places
            batch["input_ids"][row, places[row, span]] = found.ids
            targets[row, span] = found.targets
            begin = span.stop
    return batch | {"masked_positions": places, "targets": targets}
