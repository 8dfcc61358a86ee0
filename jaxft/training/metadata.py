"""Metadata that a run writes before it trains: `run.json`, `table.json`, `rates.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.analysis.data_warnings import split_warnings
from jaxft.data.batching.plans import Layout
from jaxft.device.process import environment
from jaxft.engine.cost import step_flops
from jaxft.engine.inputs import describe_split
from jaxft.engine.length import Length
from jaxft.engine.mixture import describe_mixture
from jaxft.engine.setup import PhaseSetup, Setup
from jaxft.engine.trained import best_metric
from jaxft.layerwise.defaults import MUON, is_matrix
from jaxft.layerwise.phases import Phase
from jaxft.models.adapters.low_rank import is_adapter
from jaxft.numbers import count, counted
from jaxft.training.sampling.program import dearest

MOST_RATE_POINTS = 400


def run_json(setup: Setup, chosen: PhaseSetup, command: Sequence[str]) -> dict[str, Any]:
    """Describe a run's environment, inputs and settings, with every `auto` and duration resolved.

    Args:
        setup: the run.
        chosen: its widest phase.
        command: the command line.
    """
    source, train = setup.model.source, setup.splits["train"]
    data = [describe_split(split, setup.label_names) for split in setup.splits.values()]
    warned = split_warnings(setup.config, setup.bound, setup.splits, data)
    for split in data:
        split["warnings"] = warned[split["split"]]
    data[0]["drawn"] = describe_mixture(setup.config, train, setup.plan.mixture)
    return {
        **environment(),
        "command": list(command),
        "checkpoint": {
            "asked": source.asked,
            "revision": source.revision,
            "sha256": source.sha256,
        },
        "data": data,
        "labels": list(setup.label_names),
        "fitted": dict(setup.task.facts),
        "layout": vars(setup.layout),
        "resolved": vars(setup.length),
        "phases": [phase_facts(phase) for phase in setup.phases],
        "compute": {
            "dtype": setup.compute.dtype,
            "precision": setup.compute.precision,
            "scan": setup.compute.scan,
            "remat": str(chosen.compute.remat),
        },
        "mesh": dict(setup.mesh.shape),
        "best_metric": best_metric(setup.config, setup.task),
        "view": setup.task.view,
    }


def phase_facts(phase: Phase) -> dict[str, Any]:
    """Describe a phase: its steps and the size of its trainable part."""
    leaves = [leaf for leaf in phase.table.leaves if leaf.trainable]
    return {
        "start": phase.start,
        "stop": phase.stop,
        "leaves": len(leaves),
        "parameters": sum(leaf.parameters for leaf in leaves),
        "depths": [min(leaf.depth for leaf in leaves), max(leaf.depth for leaf in leaves)],
    }


def phase_line(phase: Phase, count_of_phases: int) -> str:
    """Describe in one line what trains in a phase."""
    facts = phase_facts(phase)
    low, high = facts["depths"]
    return (
        f"phase {phase.index + 1} of {count_of_phases}, to step {facts['stop']:,}: "
        f"{count(facts['parameters'])} parameters train, depths {low} to {high}"
    )


def table_json(setup: Setup, chosen: PhaseSetup) -> dict[str, Any]:
    """Describe the LayerTable by group and by parameter, with the FLOPs of a step.

    Of sampled blocks the optimizer's state and the FLOPs are those of as many as train at once.

    Args:
        setup: the run.
        chosen: its widest phase.
    """
    dear = dearest(setup, (chosen,))[1]
    states = {group["name"]: group["optimizer_bytes"] for group in dear.table.summary()}
    return {
        "groups": [
            group | {"optimizer_bytes": states[group["name"]]} for group in chosen.table.summary()
        ],
        "rows": chosen.table.rows(),
        "flops": step_flops(setup, dear),
        "warnings": optimizer_warnings(setup, chosen),
    }


def optimizer_warnings(setup: Setup, chosen: PhaseSetup) -> list[str]:
    """Warn of an update rule that is known to serve pretrained weights badly.

    Args:
        setup: the run.
        chosen: its widest phase.

    Source: https://arxiv.org/abs/2605.10468, in which full fine-tuning by Muon ends below AdamW
        for checkpoints that AdamW pretrained, the more the larger the updates, and LoRA does not.
    """
    table, pretrained = chosen.table, set(setup.model.matching.loaded)
    groups = {group.name for group in table.training_groups if group.algorithm == MUON}
    if not any(
        leaf.trainable
        and leaf.group in groups
        and leaf.name in pretrained
        and is_matrix(leaf.name, leaf.shape)
        and not is_adapter(leaf.name)
        for leaf in table.leaves
    ):
        return []
    return [
        "optimizer muon trains pretrained matrices; where AdamW pretrained them, AdamW has been "
        "found to end better, or Muon with adapter.kind lora (arXiv 2605.10468)"
    ]


def rates_json(total: int, phases: Sequence[PhaseSetup]) -> dict[str, Any]:
    """List the rates of the fastest leaf of each training group and depth, thinned for a plot.

    A rate is 0 in phases in which the group or depth does not train.

    Args:
        total: steps of the run.
        phases: each of its phases.
    """
    steps = np.unique(np.linspace(0, total - 1, min(total, MOST_RATE_POINTS)).astype(int))
    names = list(dict.fromkeys(g.name for one in phases for g in one.table.training_groups))
    depths = sorted({leaf.depth for one in phases for leaf in one.table.leaves if leaf.trainable})
    rates, by_depth = (np.zeros((len(steps), len(columns))) for columns in (names, depths))
    for one in phases:
        inside = (steps >= one.phase.start) & (steps < one.phase.stop)
        of = [names.index(leaf.group) for leaf in one.table.leaves if leaf.trainable]
        at = [depths.index(leaf.depth) for leaf in one.table.leaves if leaf.trainable]
        columns = [names.index(group.name) for group in one.table.training_groups]
        for row in np.flatnonzero(inside):
            driven = np.zeros(len(names))
            driven[columns] = one.rates[steps[row]]
            rate = driven[of] * one.table.multipliers() * one.phase.lr_scale_at(steps[row])
            np.maximum.at(rates[row], of, rate)
            np.maximum.at(by_depth[row], at, rate)
    return {
        "groups": names,
        "steps": steps.tolist(),
        "rates": rates.tolist(),
        "depths": depths,
        "by_depth": by_depth.tolist(),
    }


def batch_line(layout: Layout, length: Length, why: Sequence[str]) -> str:
    """Describe the batches and steps, and give the reasons for settings left open."""
    batch = f"{counted(layout.rows, 'example')} a step"
    if layout.row_length > 1:
        batch = (
            f"{counted(layout.rows, 'row')} of {layout.row_length} tokens a step hold "
            f"{layout.examples_per_step:.1f} examples, {layout.padding:.1%} padding"
        )
    steps = f"{batch}; {counted(length.total_steps, 'step')}, {length.steps_per_epoch:,} an epoch"
    if length.growth:
        parts = len(length.growth) + 1
        steps += (
            f"; the first {sum(length.growth):,} have 1 to {parts - 1} of {parts} micro-batches"
        )
    return "\n".join([steps, *filter(None, why)])
