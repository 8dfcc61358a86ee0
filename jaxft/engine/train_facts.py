"""What a run writes down of itself before it trains: `run.json`, `table.json`, `rates.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.engine.build import Build
from jaxft.engine.cost import step_flops
from jaxft.engine.inputs import describe_split
from jaxft.engine.run_folder import facts
from jaxft.engine.trained import best_metric

MOST_RATE_POINTS = 400


def run_json(built: Build, command: Sequence[str]) -> dict[str, Any]:
    """With what, from what and how the run is made, all that was `auto` or a duration resolved."""
    source = built.model.source
    return {
        **facts(),
        "command": list(command),
        "checkpoint": {
            "asked": source.asked,
            "revision": source.revision,
            "sha256": source.sha256,
        },
        "data": [describe_split(split, built.label_names) for split in built.splits.values()],
        "labels": list(built.label_names),
        "layout": vars(built.layout),
        "resolved": vars(built.length),
        "compute": {
            "dtype": built.compute.dtype,
            "precision": built.compute.precision,
            "scan": built.compute.scan,
            "remat": built.compute.remat,
        },
        "mesh": dict(built.mesh.shape),
        "best_metric": best_metric(built.config, built.task),
    }


def table_json(built: Build) -> dict[str, Any]:
    """The LayerTable by group and by parameter, with the FLOPs of a step."""
    return {
        "groups": built.table.summary(),
        "rows": built.table.rows(),
        "flops": step_flops(built),
    }


def rates_json(built: Build) -> dict[str, Any]:
    """The rate of each training group's fastest leaf, thinned to what a curve can show."""
    total = built.length.total_steps
    steps = np.unique(np.linspace(0, total - 1, min(total, MOST_RATE_POINTS)).astype(int))
    return {
        "groups": [group.name for group in built.table.training_groups],
        "steps": steps.tolist(),
        "rates": (built.rates[steps] * built.table.group_multipliers()).astype(float).tolist(),
    }


def batch_line(built: Build) -> str:
    """What a step holds and how many there are, in one line."""
    layout, length = built.layout, built.length
    batch = f"{layout.rows} examples a step"
    if layout.row_length > 1:
        batch = (
            f"{layout.rows} rows of {layout.row_length} tokens a step hold "
            f"{layout.examples_per_step:.1f} examples, {layout.padding:.1%} padding"
        )
    return f"{batch}; {length.total_steps:,} steps, {length.steps_per_epoch:,} an epoch"
