"""Decisions of a run on what stops training: when they are due, and the phases that they add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jaxft.config.load import Config
from jaxft.durations import Duration
from jaxft.engine.setup import Setup
from jaxft.layerwise.phases import Phase, PhaseSpec, within
from jaxft.layerwise.sampling import MISA
from jaxft.layerwise.table import LayerTable
from jaxft.training.freezing import auto_freeze, grades

KIND = "freeze"  # of the events
WHOLE = Duration(100, "percent")

Events = Iterable[Mapping[str, Any]]
# The lowest `depth` that trains, or the `linear_maps` that do not, with their gradients' norms.
Decision = Mapping[str, Any]


def freezes_itself(config: Config) -> bool:
    """Return whether a run decides during training what to freeze."""
    return config.phases in (auto_freeze.RECIPE, grades.RECIPE)


def needs_layers_at(setup: Setup, step: int) -> bool:
    """Return whether a decision needs the gradient norms of a step's layers."""
    return setup.config.phases == auto_freeze.RECIPE and auto_freeze.reads_layers_at(setup, step)


def needs_maps_at(setup: Setup, step: int) -> bool:
    """Return whether a decision needs the gradient norms of a step's linear maps."""
    if setup.config.sampling.method == MISA:
        return step % setup.length.sample_every == 0
    return setup.config.phases == grades.RECIPE and decides_at(setup, step)


def decides_at(setup: Setup, step: int) -> bool:
    """Return whether a decision is due after `step` steps."""
    if not freezes_itself(setup.config) or step >= setup.length.total_steps:
        return False
    recipe = grades if setup.config.phases == grades.RECIPE else auto_freeze
    return recipe.decides_at(setup, step)


def decide(setup: Setup, table: LayerTable, events: Events, step: int) -> Decision:
    """Decide what stops training after `step` steps.

    Args:
        setup: the run.
        table: of its phase.
        events: the event log up to `step`.
        step: a step at which a decision is due.
    """
    if setup.config.phases == grades.RECIPE:
        return {"linear_maps": grades.decide(setup, table, events, step)}
    return {"depth": auto_freeze.decide(setup, table, events, step)}


def freeze(setup: Setup, step: int, decision: Decision) -> Setup:
    """Add a phase to the run, from `step` on, in which a decision's parameters do not train.

    Returns:
        The run; the same one where nothing that trains is frozen.
    """
    last, top = setup.phases[-1], setup.model.num_depths - 1
    training = [leaf for leaf in last.table.leaves if leaf.trainable]
    if (depth := decision.get("depth")) is not None:
        chosen = {leaf.name for leaf in training if leaf.depth >= depth}
        spec = PhaseSpec(WHOLE, depth=(depth, top))
    else:
        stopped = set(decision["linear_maps"])
        names = (leaf.name for leaf in training)
        chosen = {name for name in names if name.rpartition("/")[0] not in stopped}
        spec = PhaseSpec(WHOLE)
    if len(chosen) == len(training) or not chosen:
        return setup
    index, total = last.index + 1, setup.length.total_steps
    table = within(last.table, chosen, last.table, index)
    phases = (*setup.phases[:-1], replace(last, stop=step), Phase(index, step, total, spec, table))
    return replace(setup, phases=phases)


def with_decisions(setup: Setup, events: Events, step: int) -> Setup:
    """Add the phases that the run decided on in its first `step` steps."""
    for event in events:
        if event["kind"] == KIND and event["step"] <= step:
            setup = freeze(setup, event["step"], event)
    return setup
