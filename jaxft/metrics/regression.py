"""Metrics of predicted numbers over a whole evaluation."""

from __future__ import annotations

import math

import numpy as np


def regression_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of predicted numbers over one split.

    Args:
        predicted, labels: `[examples]`.

    Returns:
        `rmse` and, where the labels differ, `r2` (the share of their variance that is explained;
        below 0 where predicting their mean is better), `pearson` and `spearman` (correlations; 0
        where all predictions are the same).
    """
    from scipy import stats

    predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)
    squared = float(np.mean((predicted - labels) ** 2))
    rmse = {"rmse": math.sqrt(squared)}
    if np.ptp(labels) == 0:
        return rmse
    r2 = {"r2": 1 - squared / float(np.var(labels))}
    if np.ptp(predicted) == 0:
        return {**r2, "pearson": 0.0, "spearman": 0.0, **rmse}
    return {
        **r2,
        "pearson": float(stats.pearsonr(predicted, labels).statistic),
        "spearman": float(stats.spearmanr(predicted, labels).statistic),
        **rmse,
    }
