"""Random masking of tokens, for a masked language model.

Source: Devlin et al. (2018), https://arxiv.org/abs/1810.04805, section 3.1: 15% of the tokens are
chosen; 80% of those become the mask token, 10% a random token, and 10% stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxft.data.random import Chance

SHARE = 0.15
MASKED, OTHER = 0.8, 0.1  # of the chosen tokens; the rest stay
UNSCORED = -1  # the target where nothing is scored


@dataclass(frozen=True)
class Hidden:
    """Tokens of a text that are to be told.

    Attributes:
        places: where they stand, `[hidden]`, ascending.
        ids: what stands there now, `[hidden]` int32.
        targets: what stood there, `[hidden]` int32; -1 where that is not known.
    """

    places: np.ndarray
    ids: np.ndarray
    targets: np.ndarray


def most_hidden(share: float, tokens: int, texts: int) -> int:
    """Return the most tokens that `choose` takes of so many texts with so many tokens together."""
    return min(int(share * tokens) + texts, tokens)


def choose(words: np.ndarray, share: float, whole: bool, chance: Chance) -> np.ndarray:
    """Return the tokens of a text that are hidden: `[hidden]`, ascending.

    They are `share` of its tokens, rounded, and one at least.

    Args:
        words: the word that each token is of, `[tokens]`; -1 of a special token, never chosen.
        share: of the tokens that are no special ones.
        whole: take words, each with all of its tokens; one that would be too many is passed over,
            so that a text of one long word may stay as it is.
        chance: what is drawn from.
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


def hide(ids: np.ndarray, places: np.ndarray, mask: int, vocabulary: int, chance: Chance) -> Hidden:
    """Chosen tokens, most of them replaced.

    Args:
        ids: the text's, `[tokens]`.
        places: the tokens that are to be told.
        mask: the mask token.
        vocabulary: ids run below it.
        chance: what is drawn from.
    """
    kind, other = chance.uniform(len(places)), chance.below(vocabulary, len(places))
    targets = ids[places].astype(np.int32)
    put = np.where(kind < MASKED, mask, np.where(kind < MASKED + OTHER, other, targets))
    return Hidden(places, put.astype(np.int32), targets)


def cover(ids: np.ndarray, places: np.ndarray, mask: int) -> Hidden:
    """Chosen tokens, all of them covered by the mask token."""
    return Hidden(places, np.full(len(places), mask, np.int32), ids[places].astype(np.int32))
