"""The candidates of queries as lists: their loss, and the line of each in a predictions file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.metrics.ranking import RELEVANT

SHOWN = 3  # passages written for each query
HIDDEN = -1e9  # the score of a pair of another query


def list_losses(
    scores: jax.Array, relevance: jax.Array, present: jax.Array, groups: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the summed cross-entropy of the queries in a batch, and their number.

    The target of a candidate is its share in the relevance of all.

    Source: Cao et al. (2007), "Learning to Rank: From Pairwise Approach to Listwise Approach",
    section 4.2, as TensorFlow Ranking's softmax loss has it.

    Args:
        scores: `[R, N]`.
        relevance: `[R, N]`, 0 for no pair.
        present: `[R, N]`, 1 for a pair.
        groups: `[R, N]` int32, the number of each pair's query.
    """
    same = groups[:, :, None] == groups[:, None, :]  # [R, N, N]
    others = jnp.where(same & (present[:, None, :] > 0), scores[:, None, :], HIDDEN)
    losses = jax.nn.logsumexp(others, axis=-1) - scores
    totals = jnp.sum(same * relevance[:, None, :], axis=-1)
    shares = relevance / jnp.where(totals > 0, totals, 1.0)
    return jnp.sum(losses * shares), jnp.sum(shares)


def by_query(queries: np.ndarray) -> list[np.ndarray]:
    """Return the positions of each query's pairs, in order of queries.

    Args:
        queries: `[pairs]`, the number of each one's query.
    """
    order = np.argsort(queries, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(queries[order])) + 1)


def list_loss(scores: np.ndarray, relevance: np.ndarray, queries: np.ndarray) -> float:
    """Return the mean over queries of the cross-entropy over all of their candidates.

    Args:
        scores, relevance, queries: `[pairs]`.
    """
    losses = []
    for own in by_query(queries):
        if (total := float(relevance[own].sum())) > 0:
            values = scores[own].astype(np.float64)
            different = np.logaddexp.reduce(values) - values
            losses.append(float(np.sum(relevance[own] * different)) / total)
    return float(np.mean(losses)) if losses else 0.0


def ranked_line(
    query: str, ranking: Sequence[Mapping[str, Any]], relevance: np.ndarray
) -> dict[str, Any]:
    """Return the line of a query with labels, as the report shows nearest texts.

    Args:
        query: its text.
        ranking: `passage` and `score` of each candidate, the best first.
        relevance: `[candidates]` likewise.
    """
    hits = np.flatnonzero(relevance >= RELEVANT)
    return {
        "text": query,
        "positive": ranking[int(hits[0])]["passage"] if len(hits) else "",
        "before": int(hits[0]) if len(hits) else len(ranking),
        "found": [{"text": one["passage"], "similarity": one["score"]} for one in ranking[:SHOWN]],
    }
