"""AutoFreeze: the lowest layers stop once their gradients change less than those above them do.

A run is cut into intervals. At the end of each the mean gradient norm of every layer is compared
with the interval before, and the layers below the first one that changed by at least a percentile
of all changes stop. The norms are those of the steps whose layers are looked at, as the run's
diary has them, and so is each decision: a resumed run decides the same.

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
LOOKS = 10  # steps of an interval whose layers are looked at, at least

Events = Iterable[Mapping[str, Any]]


def freezes_itself(config: Config) -> bool:
    """Whether a run decides by itself which layers stop."""
    return config.phases == "auto_freeze"


def looks_at(setup: Setup, step: int) -> bool:
    """Whether a step's layers are needed for a decision."""
    every = setup.length.freeze_every
    return freezes_itself(setup.config) and step % max(every // LOOKS, 1) == 0


def decides_at(setup: Setup, step: int) -> bool:
    """Whether a decision is due after `step` steps: from the end of the second interval on."""
    every, total = setup.length.freeze_every, setup.length.total_steps
    return freezes_itself(setup.config) and step % every == 0 and 2 * every <= step < total


def lowest_to_train(
    before: Mapping[int, float], now: Mapping[int, float], percentile: float
) -> int:
    """The lowest depth that goes on training.

    Args:
        before, now: depth -> mean gradient norm in the interval before and in this one.
        percentile: of all changes, 0 to 100: what a layer has to change by, relative to what it
            was, to go on.
    """
    depths = sorted(before.keys() & now.keys())
    change = np.array([abs(before[d] - now[d]) / max(before[d], 1e-30) for d in depths])
    return depths[int(np.argmax(change >= np.percentile(change, percentile)))]


def decide(setup: Setup, table: LayerTable, events: Events, step: int) -> int:
    """The lowest depth that goes on training after `step` steps.

    Args:
        setup: the run.
        table: of its phase.
        events: the run's diary up to `step`.
        step: a multiple of the interval.
    """
    every, top = setup.length.freeze_every, setup.model.num_depths - 1
    lowest = min(leaf.depth for leaf in table.leaves if leaf.trainable)
    looked = [event for event in events if event["kind"] == "layers"]

    def mean(end: int) -> dict[int, float]:
        """Of the interval that ends after `end` steps; the top never stops, so it is left out."""
        norms = [e["grad_norm"] for e in looked if end - every < e["step"] <= end]
        found: dict[int, list[float]] = {}
        for depth, norm in ((int(d), n) for of in norms for d, n in of.items()):
            if lowest <= depth < top and norm is not None:
                found.setdefault(depth, []).append(norm)
        return {depth: float(np.mean(values)) for depth, values in found.items()}

    before, now = mean(step - every), mean(step)
    if not before.keys() & now.keys():
        return lowest
    return lowest_to_train(before, now, setup.config.freezing.percentile)


def freeze_below(setup: Setup, step: int, depth: int) -> Setup:
    """The run with a further phase from `step` on, in which nothing below `depth` trains."""
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
    """The run with the phases that it had decided on in its first `step` steps."""
    for event in events:
        if event["kind"] == KIND and event["step"] <= step:
            setup = freeze_below(setup, event["step"], event["depth"])
    return setup
