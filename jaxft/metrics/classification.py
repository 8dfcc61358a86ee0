"""Metrics of a whole evaluation, from scikit-learn; what a running sum can give is in the step."""

from __future__ import annotations

import numpy as np
from sklearn import metrics


def classification_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of a classifier over one split.

    Args:
        probabilities: `[examples, classes]`.
        labels: `[examples]` class ids.

    Returns:
        `f1` (macro), `mcc` (Matthews correlation) and, for two classes, `auroc`.
    """
    predicted = probabilities.argmax(axis=-1)
    scores = {
        "f1": float(metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "mcc": float(metrics.matthews_corrcoef(labels, predicted)),
    }
    if probabilities.shape[-1] == 2 and len(np.unique(labels)) == 2:
        scores["auroc"] = float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    return scores
