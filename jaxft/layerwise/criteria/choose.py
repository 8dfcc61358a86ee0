"""Choice of matrices by a criterion, and agreement between criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Mapping[str, float | None]  # matrix -> score
RANDOM = "random"  # the control: a choice by the run's seed


@dataclass(frozen=True)
class Criterion:
    """One measure of the matrices of a model's blocks.

    Attributes:
        title: as a table's column and a figure have it.
        lead: one sentence that says what it is.
        highest: whether the matrices that score highest are the ones to train; None for a cost,
            which is not chosen by.
        by_block: whether all matrices of a block have the block's value.
    """

    title: str
    lead: str
    highest: bool | None
    by_block: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "alpha": Criterion(
        "alpha",
        "Exponent of the power law fitted to the tail of the eigenvalues; a large one means a "
        "weight matrix with little structure yet.",
        True,
    ),
    "hill": Criterion(
        "Hill", "Hill's estimate of that exponent, from the larger half of the eigenvalues.", True
    ),
    "above_noise": Criterion(
        "above MP",
        "Share of singular values above the Marchenko-Pastur edge, which noise does not exceed.",
        True,
    ),
    "spectrum": Criterion(
        "Spectrum",
        "Sum of the singular values above that edge over the sum below, over the largest one.",
        True,
    ),
    "relative_gradient": Criterion(
        "g/w", "Norm of the gradient, the mean of the batches, over the norm of the weights.", True
    ),
    "gradient_signal": Criterion(
        "g SNR", "Squared norm of the mean gradient over the variance of the batches.", True
    ),
    "fisher": Criterion(
        "Fisher", "Trace of the empirical Fisher matrix, with one gradient per batch.", True
    ),
    "layer_card": Criterion(
        "resnorm",
        "Norm of the output's gradient projected onto the input, so that large inputs do not "
        "count as large gradients (Layer Card).",
        True,
    ),
    "outliers": Criterion(
        "outliers", "Share of products |weight| x input norm above 5 times their mean (OWS).", True
    ),
    "residual": Criterion(
        "residual", "How much the block changes its stream: ||out - in|| / ||in||.", True, True
    ),
    "cosine": Criterion(
        "cosine",
        "Cosine of the states that enter the block to those that leave it for the next; the "
        "blocks with the lowest are chosen.",
        False,
        True,
    ),
    "cls_cosine": Criterion(
        "cls",
        "Mean cosine of the block's state of the first token, of a causal model the last, to that "
        "of every other block (PRiSM).",
        True,
        True,
    ),
    "flops": Criterion(
        "FLOP", "Matmul FLOPs of a step in the matrix: forward, input and weight gradient.", None
    ),
    "optimizer_bytes": Criterion(
        "optimizer", "Bytes of the optimizer's state if the matrix trains.", None
    ),
}
CHOICES = (*(name for name, one in CRITERIA.items() if one.highest is not None), RANDOM)


def choose(scores: Mapping[str, float], kinds: Mapping[str, str], fraction: float) -> list[str]:
    """Choose the matrices that score highest in each kind, at least one of each.

    Args:
        scores: matrix -> score; of equal ones the first is chosen.
        kinds: matrix -> kind; a single kind for all chooses over the whole model.
        fraction: of each kind, in (0, 1].

    Returns:
        The chosen, in the order of `scores`.
    """
    chosen: set[str] = set()
    for kind in dict.fromkeys(kinds[name] for name in scores):
        own = [name for name in scores if kinds[name] == kind]
        count = max(math.floor(len(own) * fraction + 0.5), 1)
        chosen.update(sorted(own, key=lambda name: -scores[name])[:count])
    return [name for name in scores if name in chosen]


def mean_ranks(
    scores: Mapping[str, float], kinds: Mapping[str, str], blocks: Mapping[str, str]
) -> dict[str, float]:
    """Average the ranks of each block's matrices, taken within their kinds.

    Args:
        scores: matrix -> score.
        kinds, blocks: matrix -> kind, and block.

    Returns:
        Block -> mean rank, from -0.5 for the lowest to 0.5 for the highest, in the order of
        `scores`.
    """
    names = list(scores)
    ranks = dict(zip(names, _centered_ranks(names, scores, kinds).tolist(), strict=True))
    return {
        block: float(np.mean([ranks[name] for name in names if blocks[name] == block]))
        for block in dict.fromkeys(blocks[name] for name in names)
    }


def random_scores(names: Sequence[str], seed: int) -> dict[str, float]:
    """Give every matrix a random score, by the seed.

    Args:
        names: the matrices; the same in the same order have the same scores.
        seed: not negative.
    """
    values = np.random.default_rng(seed).random(len(names))
    return dict(zip(names, values.tolist(), strict=True))


def rank_correlations(
    scores: Mapping[str, Scores], kinds: Mapping[str, str]
) -> dict[str, dict[str, float | None]]:
    """Correlate criteria by the ranks of the matrices within each kind (Spearman's rho).

    Ranks are taken within a kind, so that it is the depth on which criteria agree, and not which
    kinds of matrix are larger.

    Args:
        scores: criterion -> matrix -> score.
        kinds: matrix -> kind.

    Returns:
        Criterion -> criterion -> correlation over the matrices that have both scores; None where
        these are fewer than three or all of one rank.
    """
    return {
        one: {other: _correlation(scores[one], scores[other], kinds) for other in scores}
        for one in scores
    }


def _correlation(left: Scores, right: Scores, kinds: Mapping[str, str]) -> float | None:
    both = [name for name in left if left[name] is not None and right.get(name) is not None]
    x, y = (_centered_ranks(both, scores, kinds) for scores in (left, right))
    length = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / length if len(both) >= 3 and length > 0 else None


def _centered_ranks(names: Sequence[str], scores: Scores, kinds: Mapping[str, str]) -> np.ndarray:
    """Rank the matrices within their kinds, from 0 in the middle; equal ones share a rank."""
    from scipy.stats import rankdata

    ranks = np.zeros(len(names))
    of_kind = np.array([kinds[name] for name in names])
    values = np.array([scores[name] for name in names], np.float64)
    for kind in np.unique(of_kind):
        own = rankdata(values[of_kind == kind])
        ranks[of_kind == kind] = (own - own.mean()) / len(own)
    return ranks
