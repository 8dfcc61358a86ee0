"""Random masking of tokens, for a masked language model.

Source: Devlin et al. (2018), https://arxiv.org/abs/1810.04805, section 3.1: 15% of the tokens are
chosen; 80% of those become the mask token, 10% a random token, and 10% stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxft.data.random import ExampleRandom

SHARE = 0.15
MASKED, OTHER = 0.8, 0.1  # of the chosen tokens; the rest stay
UNSCORED = -1  # the target where nothing is scored


@dataclass(frozen=True)
class MaskedTokens:
    """Masked tokens of a text, which the model predicts.

    Attributes:
        places: their positions, `[hidden]`, ascending.
        ids: the tokens there now, `[hidden]` int32.
        targets: the original tokens, `[hidden]` int32; -1 if unknown.
    """

    places: np.ndarray
    ids: np.ndarray
    targets: np.ndarray


def most_masked(share: float, tokens: int, texts: int) -> int:
    """Return the most tokens that `choose_tokens` takes of this many texts and tokens."""
    return min(int(share * tokens) + texts, tokens)


def choose_tokens(
    words: np.ndarray, share: float, whole: bool, chance: ExampleRandom
) -> np.ndarray:
    """Return the tokens of a text to mask: `[hidden]`, ascending.

    They are `share` of its tokens, rounded, and one at least.

    Args:
        words: the word that each token belongs to, `[tokens]`; -1 for a special token, which is
            never chosen.
        share: the fraction of the tokens without special ones.
        whole: choose whole words; one that would exceed the share is skipped, so a text of one
            long word may stay as it is.
        chance: the random numbers.
    """
    inner = np.flatnonzero(words >= 0)
    most = min(max(round(share * len(inner)), 1), len(inner))
    if not whole:
        return np.sort(inner[chance.order(len(inner))[:most]])
    chosen: list[np.ndarray] = []
    count = 0
    names = np.unique(words[inner])
    for name in names[chance.order(len(names))]:
        own = np.flatnonzero(words == name)
        if count + len(own) <= most:
            chosen.append(own)
            count += len(own)
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def mask_tokens(
    ids: np.ndarray, places: np.ndarray, mask: int, vocabulary: int, chance: ExampleRandom
) -> MaskedTokens:
    """Mask chosen tokens for training: most of them are replaced.

    Args:
        ids: the text's, `[tokens]`.
        places: the positions of the chosen tokens.
        mask: the mask token.
        vocabulary: ids are below it.
        chance: the random numbers.
    """
    kind, other = chance.uniform(len(places)), chance.below(vocabulary, len(places))
    targets = ids[places].astype(np.int32)
    put = np.where(kind < MASKED, mask, np.where(kind < MASKED + OTHER, other, targets))
    return MaskedTokens(places, put.astype(np.int32), targets)


def mask_all(ids: np.ndarray, places: np.ndarray, mask: int) -> MaskedTokens:
    """Replace all chosen tokens by the mask token."""
    return MaskedTokens(places, np.full(len(places), mask, np.int32), ids[places].astype(np.int32))
