"""Metrics of a task: the direction that is better, and the reduction of sums to a score."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MOST_EXPONENT = 700  # about the largest whose exponential is a finite float


def mean(total: np.ndarray, weight: np.ndarray) -> float:
    """Divide a sum by its weight."""
    return float(total) / float(weight)


@dataclass(frozen=True)
class Metric:
    """A metric's direction, and the reduction of its sums over a split to a score.

    Args:
        lower_is_better: whether a lower score is better.
        reduce: (sum, weight) over all batches, float64, to the score. A sum may be an array, such
            as a confusion matrix, which needs a reduction of its own.
        stream: the name of the sum in `BoundTask.sums`; None for the metric's own name.
    """

    lower_is_better: bool = False
    reduce: Callable[[np.ndarray, np.ndarray], float] = mean
    stream: str | None = None


HIGHER, LOWER = Metric(), Metric(lower_is_better=True)


def loss_and(*names: str) -> dict[str, Metric]:
    """Return the metrics `loss`, of which less is better, and others, of which more is."""
    return {"loss": LOWER, **dict.fromkeys(names, HIGHER)}


def exponential(mean_loss: float) -> float:
    """Return e to a mean loss, the perplexity; infinity beyond the range of floats."""
    return math.exp(mean_loss) if mean_loss < MOST_EXPONENT else math.inf
