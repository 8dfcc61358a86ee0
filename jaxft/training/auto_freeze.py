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
from dataclasses import replace
from typing import Any

import numpy as np

from jaxft.config.load import Config
from jaxft.durations import Duration
from jaxft.engine.setup import Setup
from jaxft.layerwise.phases import Phase, PhaseSpec, within
from jaxft.layerwise.table import LayerTable

KIND = "freeze"  # of the events
READINGS = 10  # the least number of steps in an interval whose gradient norms are logged

Events = Iterable[Mapping[str, Any]]


def freezes_itself(config: Config) -> bool:
    """Return whether a run decides during training which layers to freeze."""
    return config.phases == "auto_freeze"


def needs_layers_at(setup: Setup, step: int) -> bool:
    """Return whether a decision needs the gradient norms of a step."""
    every = setup.length.freeze_every
    return freezes_itself(setup.config) and step % max(every // READINGS, 1) == 0


def decides_at(setup: Setup, step: int) -> bool:
    """Return whether a decision is due after `step` steps, two or more whole intervals."""
    every, total = setup.length.freeze_every, setup.length.total_steps
    return freezes_itself(setup.config) and step % every == 0 and 2 * every <= step < total


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


def freeze_below(setup: Setup, step: int, depth: int) -> Setup:
    """Add a phase to the run, from `step` on, in which nothing below `depth` trains."""
    last = setup.phases[-1]
    chosen = {leaf.name for leaf in last.table.leaves if leaf.trainable and leaf.depth >= depth}
    if len(chosen) == len(last.table.trainable):
        return setup
    index, total = last.index + 1, setup.length.total_steps
    spec = PhaseSpec(Duration(100, "percent"), depth=(depth, setup.model.num_depths - 1))
    following = Phase(index, step, total, spec, within(last.table, chosen, last.table, index))
    phases = (*setup.phases[:-1], replace(last, stop=step), following)
    return replace(setup, phases=phases)


def with_decisions(setup: Setup, events: Events, step: int) -> Setup:
    """Add the phases that the run decided on in its first `step` steps."""
    for event in events:
        if event["kind"] == KIND and event["step"] <= step:
            setup = freeze_below(setup, event["step"], event["depth"])
    return setup
