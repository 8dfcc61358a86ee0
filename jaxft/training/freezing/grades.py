"""GradES: freezes a linear map of a block once the norm of its gradient falls below a threshold.

The first `freezing.grace` of a run freezes nothing. After it, every `freezing.every`, each linear
map that still trains is frozen if the norm of its gradient, in the last step, is below
`freezing.threshold`. Norms and decisions are in the event log, so that a resumed run decides the
same. Gradients continue to flow through what is frozen.

Source: Wen et al. (2025), https://arxiv.org/abs/2509.01842, version 1, with the Euclidean norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxft.engine.setup import Setup
from jaxft.layerwise.table import LayerTable

RECIPE = "grades"
NORMS = "linear_map_norms"  # the kind of the events with the norms


def decides_at(setup: Setup, step: int) -> bool:
    """Return whether a decision is due after `step` steps."""
    grace = setup.config.freezing.grace * setup.length.total_steps
    return step % setup.length.freeze_every == 0 and step >= max(grace, 1)


def linear_maps(table: LayerTable) -> dict[str, list[int]]:
    """List the linear maps of blocks that train, with adapters: map -> its trainable leaves.

    Args:
        table: of a phase.

    Returns:
        The path of a map's parameters -> their positions among `table.trainable`.
    """
    shapes = {leaf.name: leaf.shape for leaf in table.leaves}
    maps: dict[str, list[int]] = {}
    for index, name in enumerate(table.trainable):
        if "blocks/" in name:
            maps.setdefault(name.rpartition("/")[0], []).append(index)
    names = table.trainable
    return {path: own for path, own in maps.items() if any(len(shapes[names[i]]) > 1 for i in own)}


def map_norms(table: LayerTable, norms: np.ndarray) -> dict[str, float]:
    """Return the norm of the gradient of each linear map that trains.

    Args:
        table: of a phase.
        norms: `[leaves]` of its trainable leaves.
    """
    return {
        path: float(np.linalg.norm(norms[own].astype(np.float64)))
        for path, own in linear_maps(table).items()
    }


def decide(
    setup: Setup, table: LayerTable, events: Iterable[Mapping[str, Any]], step: int
) -> dict[str, float]:
    """Choose the linear maps that stop training after `step` steps: map -> norm.

    Args:
        setup: the run.
        table: of its phase.
        events: the event log up to `step`.
        step: a step at which a decision is due.
    """
    norms: Mapping[str, float | None] = {}  # None of a gradient that was not finite
    for event in events:
        if event["kind"] == NORMS and event["step"] == step:
            norms = event["norms"]
    least, training = setup.config.freezing.threshold, linear_maps(table)
    return {
        path: norm
        for path, norm in norms.items()
        if path in training and norm is not None and norm < least
    }
