"""Agreement of generated texts with references, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF


def translation_scores(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of a whole set, 0 to 100 as sacrebleu has them, and the share that is equal.

    Args:
        written: the model's texts.
        wanted: as many, one for each.

    Returns:
        `bleu` (13a tokens, exponential smoothing), `chrf` (6 characters, no words) and
        `exact_match`.

    Source: Papineni et al. (2002), https://aclanthology.org/P02-1040; Popovic (2015),
    https://aclanthology.org/W15-3049; Post (2018), https://arxiv.org/abs/1804.08771.
    """
    equal = sum(one == other for one, other in zip(written, wanted, strict=True))
    return {
        "bleu": float(BLEU().corpus_score(list(written), [list(wanted)]).score),
        "chrf": float(CHRF().corpus_score(list(written), [list(wanted)]).score),
        "exact_match": equal / max(len(wanted), 1),
    }
