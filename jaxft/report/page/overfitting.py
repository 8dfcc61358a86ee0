"""Overfitting in one plain sentence, from the events of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jaxft.numbers as numbers

OPEN = 1.05  # the loss on eval over its lowest, from which it has risen and does not waver


def overfitting(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A note at the step from which the loss on eval rises while the train loss falls.

    The loss on train at an evaluation is the mean of the lines since the evaluation before.

    Args:
        events: a run's, of all kinds.

    Returns:
        The note, as the page shows notes; none where the two do not part.
    """
    scored = [event for event in events if event.get("kind") == "eval" and _has_loss(event)]
    scored = sorted(
        (event for event in scored if event.get("split") == "eval"), key=lambda event: event["step"]
    )
    if len(scored) < 2:
        return []
    lines = [event for event in events if event.get("kind") == "train" and _has_loss(event)]
    stops = [event["step"] for event in scored]
    trained = [
        _mean([line["loss"] for line in lines if start < line["step"] <= stop])
        for start, stop in zip([0, *stops], stops, strict=False)
    ]
    lowest = min(range(len(scored)), key=lambda index: scored[index]["loss"])
    before, after = trained[lowest], trained[-1]
    rises = scored[-1]["loss"] > OPEN * scored[lowest]["loss"]
    if not rises or before is None or after is None or after >= before:
        return []
    text = (
        f"From here on the eval loss rises ({scored[lowest]['loss']:.3f} to "
        f"{scored[-1]['loss']:.3f} at the end) while the train loss falls ({before:.3f} to "
        f"{after:.3f}): the model overfits. Train for fewer steps "
        "(checkpoint.patience), lower the rates, or freeze more."
    )
    return [{"step": scored[lowest]["step"], "text": text}]


def _has_loss(event: Mapping[str, Any]) -> bool:
    loss = event.get("loss")
    return numbers.is_finite(loss)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
