"""Metrics of predicted numbers over a whole evaluation."""

from __future__ import annotations

import numpy as np
from scipy import stats


def regression_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of predicted numbers over one split.

    Args:
        predicted, labels: `[examples]`.

    Returns:
        `rmse` and, where the labels differ, `pearson` and `spearman` (correlations; 0 where all
        predictions are the same).
    """
    predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)
    scores = {"rmse": float(np.sqrt(np.mean((predicted - labels) ** 2)))}
    if np.ptp(labels) == 0:
        return scores
    if np.ptp(predicted) == 0:
        return {"pearson": 0.0, "spearman": 0.0, **scores}
    return {
        "pearson": float(stats.pearsonr(predicted, labels).statistic),
        "spearman": float(stats.spearmanr(predicted, labels).statistic),
        **scores,
    }
