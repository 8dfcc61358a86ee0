"""Eval rows in the space of the last block's output, before training and after.

Each row is the mean of its positions; the page shows the two directions in which the rows differ
most, of each time by itself, since training turns the space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxft.analysis.similarity import example_means
from jaxft.engine.evaluate import outcomes_of
from jaxft.engine.setup import Setup
from jaxft.models.tower.tower import Tower

MOST = 400  # rows that are looked at
NUMERIC = 5  # digits of a coordinate


def eval_embeddings(setup: Setup, params: Mapping[str, jax.Array]) -> dict[str, Any] | None:
    """The eval rows as points of a plane, evenly chosen where they are many.

    Args:
        setup: the run.
        params: every parameter.

    Returns:
        `x`, `y` (of the first two principal components), `labels` (a class a point, or which of a
        pair's texts it is), `explained` (each component's share of the variance), `alike` (the
        share of points whose nearest other one, by all dimensions, is of the same class) and
        `guessing` (the share that chance gives). None of a task whose rows have no class.
    """
    examples = setup.splits["eval"].examples
    towers = [one for one in setup.model.towers.values() if isinstance(one, Tower)]
    labels = setup.bound.point_labels(examples)
    if len(towers) != 1 or labels is None:
        return None
    count = len(examples)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(int))
    features = _features(setup, params, towers[0], chosen)  # [N, K, D]
    points = features.reshape(-1, features.shape[-1])
    own = [name for number in chosen for name in labels[number]]
    return {**plane(points), "labels": own, **_alike(points, np.array(own))}


def plane(points: np.ndarray) -> dict[str, Any]:
    """The first two principal components of some points, each with its largest load positive.

    Args:
        points: `[N, D]`.
    """
    centred = np.asarray(points, np.float64) - points.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    first = np.zeros((2, centred.shape[1]))
    first[: min(2, len(directions))] = directions[:2]
    loads = first[np.arange(2), np.abs(first).argmax(1)]
    placed = centred @ (first * np.where(loads < 0, -1, 1)[:, None]).T  # [N, 2]
    shares = np.zeros(2)
    shares[: min(2, len(sizes))] = (sizes**2 / max(float((sizes**2).sum()), 1e-30))[:2]
    x, y = (np.round(placed[:, axis], NUMERIC).tolist() for axis in range(2))
    return {"x": x, "y": y, "explained": shares.tolist()}


def _alike(points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Count the points whose nearest is of their own class, and how many would be by chance."""
    squares = (points.astype(np.float64) ** 2).sum(1)
    apart = squares[:, None] + squares[None] - 2 * points.astype(np.float64) @ points.T
    np.fill_diagonal(apart, np.inf)
    _, counts = np.unique(labels, return_counts=True)
    by_chance = (counts * (counts - 1)).sum() / max(len(labels) * (len(labels) - 1), 1)
    same = labels[apart.argmin(1)] == labels
    return {"alike": float(same.mean()), "guessing": float(by_chance)}


def _features(
    setup: Setup, params: Mapping[str, jax.Array], tower: Tower, chosen: np.ndarray
) -> np.ndarray:
    """The mean of the stream after the last block over each text, or each picture: `[N, K, D]`."""
    # The trunk of a model of which only the top trains is all of its blocks.
    top = frozenset(name for name, depth in tower.depths.items() if depth == tower.last)
    compute = replace(setup.compute, trainable=top)

    def evaluate_batch(params: Any, batch: Any) -> tuple[dict, dict]:
        stream = setup.model.trunk(params, batch, compute)
        (means,) = (example_means(one, batch) for one in stream.values())
        return {}, {"features": means, "example_ids": batch["example_ids"]}

    return outcomes_of(setup, setup.splits["eval"], evaluate_batch, params, chosen)["features"]
