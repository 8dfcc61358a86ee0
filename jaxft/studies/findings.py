"""Findings of a study that limit what its ranking says, one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.engine.setup import Setup
from jaxft.numbers import score
from jaxft.report.terminal.study import value_text

RATES = ("lr", "lr_mult", "adam_lr")  # last parts of keys that hold rates


def length_finding(steps: int, per_epoch: int) -> str:
    """Warn of members that train for less than an epoch; empty where they do not."""
    if steps >= per_epoch:
        return ""
    return (
        f"Each member trains {steps:,} of the {per_epoch:,} steps of an epoch, so that the ranking "
        "is mostly chance: set train.length to one epoch or more."
    )


def findings(
    ranking: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    vary: Mapping[str, Sequence[Any]],
    metric: str,
    setup: Setup,
) -> list[str]:
    """List what a person should know before they train the best setting.

    Args:
        ranking: from `rank`.
        rows: from `mark_rows`.
        vary: config key -> its values.
        metric: that ranks.
        setup: of one member.
    """
    length = length_finding(setup.length.total_steps, setup.length.steps_per_epoch)
    sentences = [length, _guessing(ranking[0], metric, setup)]
    sentences += [_edge(key, values, ranking[0]) for key, values in vary.items()]
    last = [row["last"] for row in rows if row["best"]]
    if len(rows) > len(last) and last and all(last):
        sentences.append("Every member is best at its last step: train longer.")
    return [sentence for sentence in sentences if sentence]


def _guessing(best: Mapping[str, Any], metric: str, setup: Setup) -> str:
    """Warn of a best setting that does not beat the most frequent class, or the mean."""
    labels, value = setup.splits["eval"].examples.labels, best["best"]["mean"]
    if labels is None or value is None or labels.ndim != 1:
        return ""
    if metric == "accuracy" and labels.dtype.kind == "i":
        guessed = float(np.bincount(labels).max() / len(labels))
        name = setup.label_names[int(np.bincount(labels).argmax())]
        against = f"the accuracy {score(guessed)} of always predicting '{name}'"
    elif metric == "r2":
        guessed, against = 0.0, "always predicting the mean"
    else:
        return ""
    if value > guessed:
        return ""
    return f"No setting beats {against}: train longer, or try other rates."


def _edge(key: str, values: Sequence[Any], best: Mapping[str, Any]) -> str:
    """Warn of a best rate that is the highest or lowest of those tried."""
    numeric = all(isinstance(value, int | float) for value in values)
    if key.rpartition(".")[2] not in RATES or not numeric or len(values) < 2:
        return ""
    chosen = best["values"].get(key)
    if chosen not in (min(values), max(values)):
        return ""
    side, other = ("lowest", "lower") if chosen == min(values) else ("highest", "higher")
    return f"The best {key}, {value_text(chosen)}, is the {side} tried: try {other} ones too."
