"""Metrics of a whole evaluation, from scikit-learn; what a running sum can give is in the step."""

from __future__ import annotations

import numpy as np

FALSE_ALARMS = 0.01  # the share of the first class that may be called the second


def classification_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of a classifier over one split.

    Args:
        probabilities: `[examples, classes]`.
        labels: `[examples]` class ids.

    Returns:
        `f1` (macro), `mcc` (Matthews correlation) and, for two classes that are both there, those
        of `detection_scores`.
    """
    from sklearn import metrics

    predicted = probabilities.argmax(axis=-1)
    several = len(np.union1d(labels, predicted)) > 1  # of one alone scikit-learn warns
    scores = {
        "f1": float(metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "mcc": float(metrics.matthews_corrcoef(labels, predicted)) if several else 0.0,
    }
    if probabilities.shape[-1] == 2 and len(np.unique(labels)) == 2:
        scores |= detection_scores(probabilities[:, 1], labels)
    return scores


def detection_scores(chances: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Score how well the examples of one kind are separated from the rest, over all thresholds.

    Args:
        chances: `[examples]`, higher where an example is more likely of that kind.
        found: `[examples]`, true or 1 where it is; both are there.

    Returns:
        `auroc`; `average_precision`; `recall_at_1pct_fpr`, the share of that kind that is found
        while at most 1% of the rest is taken for it.
    """
    from sklearn import metrics

    rest, share, _ = metrics.roc_curve(positive, chances, drop_intermediate=False)
    return {
        "auroc": float(metrics.roc_auc_score(positive, chances)),
        "average_precision": float(metrics.average_precision_score(positive, chances)),
        "recall_at_1pct_fpr": float(share[rest <= FALSE_ALARMS].max()),
    }


def multi_label_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores over one split of labels that may stand together.

    Args:
        probabilities: `[examples, labels]`.
        labels: `[examples, labels]` of 0 and 1.

    Returns:
        `f1_micro` and `f1_macro` at a half and, of the labels that some examples have,
        `mean_average_precision`.
    """
    from sklearn import metrics

    predicted, there = probabilities > 0.5, labels > 0.5
    scores = {
        f"f1_{average}": float(
            metrics.f1_score(there, predicted, average=average, zero_division=0.0)
        )
        for average in ("micro", "macro")
    }
    some = there.any(axis=0)
    if some.any():
        precision = metrics.average_precision_score(there[:, some], probabilities[:, some])
        scores["mean_average_precision"] = float(precision)
    return scores
