"""What the layers did in the steps that were looked at: into the diary, and into measured rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxft.engine.auto_rates import KIND, measured_multipliers, multipliers_now
from jaxft.engine.diagnostics import layer_values, layers_of
from jaxft.engine.train_stage import Stage
from jaxft.report.events import EventLog


def write_layers(log: EventLog, stage: Stage, step: int, sums: np.ndarray, norm: float) -> None:
    """Write what each layer did in a step.

    Args:
        log: the run's diary.
        stage: the phase that the step was in.
        step: steps done, this one included.
        sums: `[leaves, columns]`, as the step gave them.
        norm: of the whole gradient.
    """
    built, told = stage.built, stage.rates(step - 1)
    leaves = [leaf for leaf in built.table.leaves if leaf.trainable]
    groups = [group.name for group in built.table.training_groups]
    column = [groups.index(leaf.group) for leaf in leaves]
    clip = built.config.optimizer.clip
    values: dict[str, Any] = {} if clip is None else {"clip": min(1.0, clip / max(norm, 1e-30))}
    rates = told.rates[column] * told.multipliers
    log.of_kind("layers", step, values | layer_values(sums, leaves, _layers(stage), rates))


def with_measured(stage: Stage, events: Iterable[Mapping[str, Any]]) -> Stage:
    """The phase with the multipliers that the diary holds, where they are measured."""
    return replace(stage, multipliers=multipliers_now(stage.built, events))


def measure_again(stage: Stage, log: EventLog, step: int, sums: np.ndarray) -> Stage:
    """The phase with the multipliers that follow from a step; the decision goes into the diary."""
    multipliers = measured_multipliers(stage.built, sums, _layers(stage))
    named = zip(stage.built.table.trainable, map(float, multipliers), strict=True)
    log.of_kind(KIND, step, {"multipliers": dict(named)})
    return replace(stage, multipliers=multipliers)


def _layers(stage: Stage) -> list[str]:
    of = layers_of(stage.built.model)
    return [of[name] for name in stage.built.table.trainable]
