"""Similarity of two representations of the same examples."""

from __future__ import annotations

import numpy as np


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Linear centred kernel alignment, 1 for the same up to turning and one scale.

    Both kernels' similarities are estimated without bias: with fewer examples than dimensions the
    usual estimate is near 1 for representations that have nothing in common. It may so be a little
    below 0.

    Args:
        one, other: `[examples, D]` and `[examples, E]`, the same examples in the same order; at
            least 4 of them.

    Returns:
        The alignment; NaN where one of them tells no example from another.

    Source: Kornblith et al. (2019), https://arxiv.org/abs/1905.00414; without bias as in Nguyen et
    al. (2021), https://arxiv.org/abs/2010.15327.
    """
    # Kernels do not change their alignment with the origin, and large means would eat the digits.
    mine, theirs = (_similarities(features.astype(np.float64)) for features in (one, other))
    scale = _dependence(mine, mine) * _dependence(theirs, theirs)
    return float(_dependence(mine, theirs) / np.sqrt(scale)) if scale > 0 else float("nan")


def _similarities(features: np.ndarray) -> np.ndarray:
    """Inner products of different examples, about the mean: [examples, examples]."""
    centred = features - features.mean(axis=0)
    products = centred @ centred.T
    np.fill_diagonal(products, 0)
    return products


def _dependence(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased Hilbert-Schmidt independence criterion of two kernels with empty diagonals.

    Source: Song et al. (2012), equation 5, https://jmlr.org/papers/v13/song12a.html.
    """
    count = len(one)
    both = (one * other).sum()
    apart = one.sum() * other.sum() / ((count - 1) * (count - 2))
    lines = 2 / (count - 2) * (one.sum(axis=0) @ other.sum(axis=0))
    return float((both + apart - lines) / (count * (count - 3)))
