"""Scores of simple models on a run's own rows: the most frequent class or the mean, TF-IDF.

They say what a fine-tuned model is worth. scikit-learn computes them in seconds; sets that would
take it longer have the first alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.engine.inputs import Split
from jaxft.metrics.regression import regression_scores
from jaxft.tasks.parts.contract import BoundTask

MOST_ROWS = 20_000  # of both splits together
MOST_CHARACTERS = 20_000_000
MOST_TERMS = 50_000
CLASS, MEAN = "most frequent class", "mean of the training rows"
LINEAR = {"i": "TF-IDF and logistic regression", "f": "TF-IDF and ridge regression"}


def baselines(bound: BoundTask[Any, Any], train: Split, scored: Split) -> dict[str, float]:
    """Score simple models by accuracy, or by R2 where the label is a number.

    Args:
        bound: the task on its model.
        train: the rows that they learn from.
        scored: the rows that the run is scored on.

    Returns:
        Name -> score; empty where an example has no single label.
    """
    learned, wanted = train.examples.labels, scored.examples.labels
    if learned is None or wanted is None or learned.ndim != 1 or learned.dtype.kind not in "if":
        return {}
    if learned.dtype.kind == "f" and np.ptp(wanted) == 0:
        return {}  # R2 is undefined
    common = np.bincount(learned).argmax() if learned.dtype.kind == "i" else learned.mean()
    name = CLASS if learned.dtype.kind == "i" else MEAN
    scores = {name: _score(np.full(len(wanted), common), wanted)}
    texts = [_texts(bound, split) for split in (train, scored)]
    if texts[0] is None or texts[1] is None or len(np.unique(learned)) < 2:
        return scores
    predicted = _linear(texts[0], learned, texts[1])
    if predicted is not None:
        scores[LINEAR[learned.dtype.kind]] = _score(predicted, wanted)
    return scores


def _texts(bound: BoundTask[Any, Any], split: Split) -> list[str] | None:
    """Return the text of each row; None where there is none, or too much."""
    if len(split.source) > MOST_ROWS or len(split.source) != len(split.examples):
        return None
    texts: list[str] = []
    characters = 0
    for _, row in split.source.each(bound.task.input_columns or ()):
        text = " ".join(bound.task.row_texts(row))
        characters += len(text)
        if (not text and not bound.task.row_texts(row)) or characters > MOST_CHARACTERS:
            return None
        texts.append(text)
    return texts


def _linear(texts: Sequence[str], labels: np.ndarray, others: Sequence[str]) -> np.ndarray | None:
    """Predict from words and pairs of words; None where the texts have no words."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import Pipeline, make_pipeline

    terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=MOST_TERMS)
    last = LogisticRegression(C=10.0, max_iter=200) if labels.dtype.kind == "i" else Ridge()
    model: Pipeline = make_pipeline(terms, last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            return model.fit(texts, labels).predict(others)
        except ValueError:  # an empty vocabulary
            return None


def _score(predicted: np.ndarray, wanted: np.ndarray) -> float:
    if wanted.dtype.kind == "i":
        return round(float((predicted == wanted).mean()), 6)
    return round(regression_scores(predicted, wanted)["r2"], 6)
