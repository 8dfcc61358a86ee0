"""Sampling of an epoch: weighted sources, and balanced classes."""

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
    """Make the sampling of the training examples; None where an epoch has each once.

    Args:
        config: the run, with `data.train` and `data.balance`.
        task: may weight classes itself, which `data.balance` rules out.
        split: the training split.
        names: the classes.

    Raises:
        UserError: `data.balance` without classes or beside class weights; or a source of the
            mixture without any example.
    """
    mixture = config.data.mixture
    if len(mixture) == 1 and not config.data.balance:
        return None
    parts = split.source.part_of(split.rows)
    weights = np.array([one.weight for one in mixture])
    for number, one in enumerate(mixture):
        if not (parts == number).any():
            raise UserError(f"data.train: no example of {one.source} is left.")
    if config.data.balance:
        labels = _classes(task, split)
        classes = [np.unique(labels[parts == part]).size for part in range(len(mixture))]
        weights = np.repeat(weights / classes, len(names))
        parts = parts * len(names) + labels
    return Mixture(split.examples.lengths, *drop_empty(parts, weights.tolist()))


def _classes(task: Task, split: Split) -> np.ndarray:
    """Return the class of each example: `[examples]`."""
    labels = split.examples.labels
    if labels is None or labels.ndim > 1 or labels.dtype.kind == "f":
        raise UserError(
            "data.balance: the examples do not have one class each.",
            "Turn it off; to weight examples, list several sources with weights in data.train.",
        )
    if task.class_weights == "balanced":
        raise UserError(
            "data.balance and task.class_weights=balanced both correct for rare classes.",
            "Use one of them.",
        )
    return labels


def describe_mixture(config: Config, split: Split, mixture: Mixture | None) -> list[dict[str, Any]]:
    """Describe an epoch by source: its examples, its share, and reads per example.

    Args:
        config: the run.
        split: the training split.
        mixture: from `make_mixture`.
    """
    if mixture is None:
        return []
    sources = split.source.part_of(split.rows)  # [examples]
    owners = np.zeros(len(mixture.due), np.int64)
    owners[mixture.parts] = sources
    due, counts = (np.bincount(owners, weights=w) for w in (mixture.due, mixture.counts))
    return [
        {
            "source": one.source,
            "examples": int(counts[part]),
            "share": float(due[part] / due.sum()),
            "times": float(due[part] / counts[part]),
        }
        for part, one in enumerate(config.data.mixture)
    ]
