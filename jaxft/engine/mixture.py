"""What an epoch draws where it is not each example once: weighted sources, balanced classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.config.load import Config
from jaxft.data.batching.mixture import Mixture, drop_empty
from jaxft.engine.inputs import Split
from jaxft.errors import UserError
from jaxft.tasks.parts.contract import Task


def make_mixture(config: Config, task: Task, split: Split, names: Sequence[str]) -> Mixture | None:
    """What an epoch draws of the training examples; None where it is each once.

    Args:
        config: the run; its `data.train` may be a mixture, and `data.balance` on.
        task: says what a class counts.
        split: the training split.
        names: the classes.

    Raises:
        UserError: classes are to be balanced where there are none, or are weighed already; or a
            source of the mixture has no example left.
    """
    mixture = config.data.mixture
    if len(mixture) == 1 and not config.data.balance:
        return None
    parts = split.source.part_of(split.rows)
    weights = np.array([one.weight for one in mixture])
    for number, one in enumerate(mixture):
        if not (parts == number).any():
            raise UserError(f"data.train: no example of {one.source} is left to draw.")
    if config.data.balance:
        labels = _classes(task, split)
        there = [np.unique(labels[parts == part]).size for part in range(len(mixture))]
        weights = np.repeat(weights / there, len(names))
        parts = parts * len(names) + labels
    return Mixture(split.examples.lengths, *drop_empty(parts, weights.tolist()))


def _classes(task: Task, split: Split) -> np.ndarray:
    """The class of each example: `[examples]`."""
    labels = split.examples.labels
    if labels is None or labels.ndim > 1 or labels.dtype.kind == "f":
        raise UserError(
            "data.balance: these examples have no one class each, so there is none to balance.",
            "Leave it off; data.train takes several sources with weights.",
        )
    if task.class_weights == "balanced":
        raise UserError(
            "data.balance and task.class_weights: balanced would both make up for rare classes.",
            "Take one of them.",
        )
    return labels


def describe_mixture(config: Config, split: Split, drawn: Mixture | None) -> list[dict[str, Any]]:
    """What an epoch draws of each source: its examples, its share, and how often it reads each.

    Args:
        config: the run.
        split: the training split.
        drawn: what an epoch draws, or None.
    """
    if drawn is None:
        return []
    sources = split.source.part_of(split.rows)  # [examples]
    owners = np.zeros(len(drawn.due), np.int64)
    owners[drawn.parts] = sources
    due, there = (np.bincount(owners, weights=w) for w in (drawn.due, drawn.counts))
    return [
        {
            "source": one.source,
            "examples": int(there[part]),
            "share": float(due[part] / due.sum()),
            "times": float(due[part] / there[part]),
        }
        for part, one in enumerate(config.data.mixture)
    ]
