"""The Frechet distance of two samples of features, as normal distributions."""

from __future__ import annotations

import numpy as np


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The Frechet distance of two samples as normal distributions, as FID takes it.

    Source: Heusel et al. (2017), https://arxiv.org/abs/1706.08500. The trace of the root of the
    product of the covariances is that of a symmetric matrix, whose eigenvalues are real.

    Args:
        one, other: `[samples, D]`, more than one sample each.
    """
    means = [sample.mean(0) for sample in (one, other)]
    first, second = (np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    apart = float(((means[0] - means[1]) ** 2).sum())
    return max(apart + float(np.trace(first) + np.trace(second) - 2 * shared), 0.0)
