"""Scores of text embeddings over a whole split, at one or several widths of the vectors."""

from __future__ import annotations

import numpy as np

from jaxft.metrics.regression import regression_scores
from jaxft.metrics.retrieval import pair_scores, ranking_loss
from jaxft.tasks.embedding.losses import cosent_of_split, cut
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.embedding.text_tuples import TextTuples

RANKING = ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")
CORRELATION = ("spearman", "pearson")
AT_WIDTHS = ("recall_at_1", "recall_at_10", "spearman")  # scored at each of `matryoshka_dims`


def metric_names(section: Section) -> tuple[str, ...]:
    """Return the metrics of a split, beside its loss."""
    own = RANKING if section.score is None else CORRELATION
    dims = section.matryoshka_dims or ()
    return (*own, *(_at(one, dim) for dim in dims for one in own if one in AT_WIDTHS))


def split_scores(section: Section, vectors: np.ndarray, examples: TextTuples) -> dict[str, float]:
    """Compute the scores of a split; its other texts are the negatives of the loss.

    Args:
        section: the config's `task` section.
        vectors: `[examples, K, D]` unit vectors.
        examples: the split.
    """
    scores = _scores(section, shortened(section, vectors), examples)
    if (dims := section.matryoshka_dims) is None:
        return scores
    each = {dim: _scores(section, np.asarray(cut(vectors, dim)), examples) for dim in dims}
    if "loss" in scores:
        shares = section.matryoshka_weights or [1.0] * len(dims)
        scores["loss"] = sum(w * each[dim]["loss"] for w, dim in zip(shares, dims, strict=True))
    return scores | {
        _at(name, dim): score
        for dim, own in each.items()
        for name, score in own.items()
        if name in AT_WIDTHS
    }


def shortened(section: Section, vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors `[..., D]` with `task.truncate_dim` dimensions, or with all."""
    dim = section.truncate_dim
    return vectors if dim is None else np.asarray(cut(vectors, dim))


def _at(metric: str, dim: int) -> str:
    """Return the name of a metric at a width."""
    return f"{metric}_dim_{dim}"


def _scores(section: Section, vectors: np.ndarray, examples: TextTuples) -> dict[str, float]:
    """Compute the scores of unit vectors `[examples, K, D]` of one width."""
    numbers = examples.numbers
    if examples.scores is not None:
        alike = np.sum(vectors[:, 0] * vectors[:, 1], axis=-1)
        scores = regression_scores(alike, examples.scores)
        chosen = {name: scores[name] for name in CORRELATION if name in scores}
        if section.objective == "cosent":
            chosen["loss"] = cosent_of_split(alike, examples.scores, section.temperature)
        return chosen
    items = np.concatenate([vectors[:, k] for k in range(1, vectors.shape[1])])
    owners = np.concatenate([numbers[:, k] for k in range(1, numbers.shape[1])])
    scores = pair_scores(vectors[:, 0], items, numbers, owners)
    if section.objective == "multiple_negatives":
        texts = (vectors[:, 0], items, numbers, owners)
        scores["loss"] = ranking_loss(*texts, section.temperature)
    return scores
