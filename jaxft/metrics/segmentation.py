"""Scores of masks: intersection over union, by class and over classes.

A confusion matrix [C, C] has the pixels of each true class (rows) by predicted class (columns).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_iou(confusion: np.ndarray, weight: np.ndarray) -> float:
    """Average the intersection over union of the classes that are there or predicted anywhere.

    Args:
        confusion: `[C, C]`.
        weight: not read; the matrix is a sum as it is.

    Source: Everingham et al. (2010), the segmentation score of PASCAL VOC.
    """
    del weight
    shared = np.diag(confusion)
    return mean_share(shared, confusion.sum(0) + confusion.sum(1) - shared)


def mean_recall(confusion: np.ndarray, weight: np.ndarray) -> float:
    """Average the share of right pixels of the classes that are there; arguments as `mean_iou`."""
    del weight
    return mean_share(np.diag(confusion), confusion.sum(1))


def mean_share(parts: np.ndarray, wholes: np.ndarray) -> float:
    """Average parts over wholes, `[C]` each, of the classes with a whole; 0 without any."""
    there = wholes > 0
    return float(np.mean(parts[there] / wholes[there])) if there.any() else 0.0


def iou_by_class(shared: np.ndarray, union: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return `iou/NAME` of each class that is there or predicted anywhere.

    Args:
        shared, union: `[images, C]` pixels of each.
        names: the classes.
    """
    totals = shared.sum(0, dtype=np.float64), union.sum(0, dtype=np.float64)
    return {
        f"iou/{name}": float(part / whole)
        for name, part, whole in zip(names, *totals, strict=True)
        if whole
    }
