"""Scores of a run's evaluations: which is the best, and whether they still improve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def scores_before(events: Iterable[Mapping[str, Any]], metric: str) -> list[float | None]:
    """List the metric at each evaluation in the event log, in order."""
    return [event.get(metric) for event in events if event.get("split") == "eval"]


def is_best(score: float, before: Sequence[float | None], *, lower_is_better: bool) -> bool:
    """Return whether no earlier score is better; ties go to the later, as in `Checkpoints`."""
    return math.isfinite(score) and not any(
        _better(value, score, lower_is_better) for value in before
    )


def patience_is_over(
    scores: Sequence[float | None], patience: int | None, *, lower_is_better: bool
) -> bool:
    """Return whether none of the last `patience` scores is better than all before it."""
    if patience is None or len(scores) <= patience:
        return False
    early, late = scores[:-patience], scores[-patience:]
    return not any(all(_better(value, other, lower_is_better) for other in early) for value in late)


def _better(one: float | None, other: float | None, lower_is_better: bool) -> bool:
    """Return whether `one` is better than `other`."""
    if one is None or not math.isfinite(one):
        return False
    if other is None or not math.isfinite(other):
        return True
    return one < other if lower_is_better else one > other
