"""Agreement of captions with references, word by word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxft.metrics.translation import translation_scores

LONGEST = 4  # words of a sequence
WIDTH = 6.0  # of the Gaussian that discounts a caption of another length
SCALE = 10.0  # CIDEr of a caption that equals its reference and has all lengths of sequences
WORD = re.compile(r"[\w'-]+")

Counts = Counter[tuple[str, ...]]


def caption_scores(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Return `chrf` (0 to 100), `cider` (0 to 10) and `exact_match` (0 to 1) of a whole set.

    Args:
        written: the model's captions.
        wanted: as many, one for each.
    """
    scores = translation_scores(written, wanted)
    cider = float(np.mean(cider_scores(written, wanted)))
    return {"chrf": scores["chrf"], "cider": cider, "exact_match": scores["exact_match"]}


def cider_scores(written: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Return the CIDEr-D of each caption, `[N]` float64, 0 to 10.

    Words are in lower case and without punctuation. The mean is of sequences of one to four words,
    so a reference of two words reaches 5 at most; a sequence weighs by the references of the set
    that do not have it.

    Args:
        written: the model's captions.
        wanted: as many, one for each.

    Source: Vedantam et al. (2015), https://arxiv.org/abs/1411.5726, as in pycocoevalcap.
    """
    references = [_sequences(text) for text in wanted]
    frequency = Counter(sequence for counts in references for sequence in counts)
    pairs = zip(map(_sequences, written), references, strict=True)
    return np.array([_cider(own, reference, frequency, len(wanted)) for own, reference in pairs])


def _sequences(text: str) -> Counts:
    """Count the sequences of one to four words."""
    words = WORD.findall(text.lower())
    return Counter(
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    )


def _cider(own: Counts, reference: Counts, frequency: Counts, texts: int) -> float:
    pairs = (
        sum(count for one, count in side.items() if len(one) == 2) for side in (own, reference)
    )
    discount = np.exp(-((next(pairs) - next(pairs)) ** 2) / (2 * WIDTH**2))
    cosines = []
    for length in range(1, LONGEST + 1):
        mine, theirs = (_weights(one, length, frequency, texts) for one in (own, reference))
        shared = sum(min(mine[one], theirs[one]) * theirs[one] for one in mine.keys() & theirs)
        norms = _norm(mine) * _norm(theirs)
        cosines.append(shared / norms if norms else 0.0)
    return float(SCALE * discount * np.mean(cosines))


def _weights(
    counts: Counts, length: int, frequency: Counts, texts: int
) -> dict[tuple[str, ...], float]:
    """Return the counts of sequences of one length, times the logarithm of their rarity."""
    return {
        one: count * float(np.log(texts) - np.log(max(frequency[one], 1)))
        for one, count in counts.items()
        if len(one) == length
    }


def _norm(weights: dict[tuple[str, ...], float]) -> float:
    return float(np.sqrt(sum(weight**2 for weight in weights.values())))
