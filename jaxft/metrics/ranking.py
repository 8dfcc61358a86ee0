"""Ranking metrics: the candidates of each query, ordered by their scores.

A candidate that has the score of another one is counted behind it if it is the more relevant, so
that a model that scores everything alike ranks nothing well.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CUTOFF = 10  # candidates that count, from the top
RELEVANT = 0.5  # the least relevance of a relevant candidate


def ranking_scores(
    scores: np.ndarray, relevance: np.ndarray, queries: np.ndarray
) -> dict[str, float]:
    """Score the order of each query's candidates; the mean over the queries that have an order.

    A query without a relevant candidate, or with no other, is left out.

    Args:
        scores: `[candidates]`, higher for what comes first.
        relevance: `[candidates]`, 0 or more.
        queries: `[candidates]`, the number of each one's query.

    Returns:
        `mrr_at_10`: 1 over the rank of the first relevant candidate, 0 beyond rank 10;
        `ndcg_at_10`: the gain of the first ten over that of the best order, with linear gains and
        logarithmic discounts (Jarvelin and Kekalainen 2002, as trec_eval computes it);
        `mean_average_precision`: over all ranks. Nothing where no query has an order.
    """
    each = [
        (_reciprocal_rank(ranked), _gain(ranked) / _gain(-np.sort(-ranked)), _precision(ranked))
        for ranked in ranked_relevance(scores, relevance, queries)
        if ranked.max() >= RELEVANT > ranked.min()
    ]
    if not each:
        return {}
    names = ("mrr_at_10", "ndcg_at_10", "mean_average_precision")
    means = np.mean(np.array(each, np.float64), axis=0).tolist()
    return dict(zip(names, means, strict=True))


def ranked_relevance(
    scores: np.ndarray, relevance: np.ndarray, queries: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the relevance of each query's candidates, the highest score first.

    Arguments: see `ranking_scores`.
    """
    order = np.lexsort((relevance, -scores.astype(np.float64), queries))
    starts = np.flatnonzero(np.diff(queries[order])) + 1
    yield from np.split(relevance[order].astype(np.float64), starts)


def _reciprocal_rank(ranked: np.ndarray) -> float:
    hits = np.flatnonzero(ranked[:CUTOFF] >= RELEVANT)
    return 1 / (1 + int(hits[0])) if len(hits) else 0.0


def _gain(ranked: np.ndarray) -> float:
    """Return the discounted cumulative gain of the first ten."""
    first = ranked[:CUTOFF]
    return float(np.sum(first / np.log2(np.arange(len(first)) + 2)))


def _precision(ranked: np.ndarray) -> float:
    """Return the average precision: the mean precision at the ranks of relevant candidates."""
    hits = np.flatnonzero(ranked >= RELEVANT)
    return float(np.mean((np.arange(len(hits)) + 1) / (hits + 1)))
