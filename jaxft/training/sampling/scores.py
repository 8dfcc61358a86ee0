"""MISA's scores of linear maps, from the gradient norms in the event log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxft.training.freezing.grades import NORMS

DECAY = 0.9  # of the average of squared gradient norms
Events = Iterable[Mapping[str, Any]]


def scores_at(step: int, events: Events) -> dict[str, float]:
    """Compute the scores of linear maps from their gradients up to a step: path -> score.

    A score is the exponential average of squared gradient norms, which are logged at the end of
    each period for the maps that train then.

    Source: MISA, https://arxiv.org/abs/2511.00056.
    """
    scores: dict[str, float] = {}
    for event in events:
        if event["kind"] == NORMS and event["step"] <= step:
            for path, norm in event["norms"].items():
                if norm is not None:  # of a gradient that was finite
                    scores[path] = DECAY * scores.get(path, norm**2) + (1 - DECAY) * norm**2
    return scores
