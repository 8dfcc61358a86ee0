"""AutoFreeze: freezes the lowest layers once their gradients change less than those above them.

A run is divided into intervals. At the end of each, the mean gradient norm of every layer is
compared with that of the previous interval, and all layers below the first one whose change
reaches a percentile of all changes are frozen. Norms and decisions are in the event log, so that a
resumed run decides the same.

Source: Liu, Agarwal and Venkataraman (2021), https://arxiv.org/abs/2102.01386, with the layers'
    gradient norms compared as PipeTransformer's code does, https://arxiv.org/abs/2102.03161.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxft.engine.setup import Setup
from jaxft.layerwise.table import LayerTable

RECIPE = "auto_freeze"
READINGS = 10  # the least number of steps in an interval whose gradient norms are logged

Events = Iterable[Mapping[str, Any]]


def reads_layers_at(setup: Setup, step: int) -> bool:
    """Return whether a decision needs the gradient norms of a step."""
    return step % max(setup.length.freeze_every // READINGS, 1) == 0


def decides_at(setup: Setup, step: int) -> bool:
    """Return whether a decision is due after `step` steps, two or more whole intervals."""
    every = setup.length.freeze_every
    return step % every == 0 and step >= 2 * every


def lowest_to_train(
    before: Mapping[int, float], now: Mapping[int, float], percentile: float
) -> int:
    """Choose the lowest depth that continues to train.

    Args:
        before, now: depth -> mean gradient norm in the previous and in this interval.
        percentile: 0 to 100; a layer keeps training if its relative change reaches this percentile
            of all changes.
    """
    depths = sorted(before.keys() & now.keys())
    change = np.array([abs(before[d] - now[d]) / max(before[d], 1e-30) for d in depths])
    return depths[int(np.argmax(change >= np.percentile(change, percentile)))]


def decide(setup: Setup, table: LayerTable, events: Events, step: int) -> int:
    """Choose the lowest depth that continues to train after `step` steps.

    Args:
        setup: the run.
        table: of its phase.
        events: the event log up to `step`.
        step: a multiple of the interval.
    """
    every, top = setup.length.freeze_every, setup.model.num_depths - 1
    lowest = min(leaf.depth for leaf in table.leaves if leaf.trainable)
    logged = [event for event in events if event["kind"] == "layers"]

    def mean(end: int) -> dict[int, float]:
        """Average the norms of the interval up to `end`, without the top, which always trains."""
        norms = [e["grad_norm"] for e in logged if end - every < e["step"] <= end]
        by_depth: dict[int, list[float]] = {}
        for depth, norm in ((int(d), n) for of in norms for d, n in of.items()):
            if lowest <= depth < top and norm is not None:
                by_depth.setdefault(depth, []).append(norm)
        return {depth: float(np.mean(values)) for depth, values in by_depth.items()}

    before, now = mean(step - every), mean(step)
    if not before.keys() & now.keys():
        return lowest
    return lowest_to_train(before, now, setup.config.freezing.percentile)
