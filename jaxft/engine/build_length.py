"""A config's durations in optimizer steps, resolved once, and the rates that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxft.config import Config, resolve_steps
from jaxft.config_recipe import ScheduleSection
from jaxft.data.plans import TrainPlan
from jaxft.errors import UserError
from jaxft.layerwise.schedules import ScheduleSpec, make_schedule, rate_table
from jaxft.layerwise.table import LayerTable


@dataclass(frozen=True)
class Length:
    """The run's durations, resolved to optimizer steps once."""

    total_steps: int
    steps_per_epoch: int
    evaluate_every: int
    save_every: int

    def evaluates_at(self, step: int) -> bool:
        """Whether the eval rows are scored after `step` steps: at each interval and at the end."""
        return step % self.evaluate_every == 0 or step == self.total_steps

    def saves_at(self, step: int) -> bool:
        """Whether the state is saved after `step` steps; each evaluation is saved too."""
        return step % self.save_every == 0 or self.evaluates_at(step)


def resolve_length(config: Config, plan: TrainPlan) -> Length:
    """Every duration of a run in steps.

    Raises:
        UserError: the run would have no step.
    """
    train = config.train
    per_epoch = plan.steps_per_epoch
    total = resolve_steps(train.length, None, per_epoch)
    if total < 1:
        raise UserError(f"train.length: '{train.length}' is less than one step.")
    return Length(
        total_steps=total,
        steps_per_epoch=per_epoch,
        evaluate_every=resolve_steps(train.evaluate_every, total, per_epoch),
        save_every=resolve_steps(config.checkpoint.every, total, per_epoch),
    )


def schedule_spec(schedule: ScheduleSection, length: Length) -> ScheduleSpec:
    """A config's schedule with its durations in steps."""
    steps = partial(
        resolve_steps, total_steps=length.total_steps, steps_per_epoch=length.steps_per_epoch
    )
    return ScheduleSpec(
        kind=schedule.kind,
        warmup=steps(schedule.warmup),
        end=schedule.end,
        decay=steps(schedule.decay),
        cut_frac=schedule.cut_frac,
        ratio=schedule.ratio,
    )


def resolve_rates(table: LayerTable, length: Length) -> np.ndarray:
    """Every training group's rate at every step: `[steps + 1, groups]` float32."""
    schedules = [
        make_schedule(schedule_spec(group.schedule, length), group.peak_rate, length.total_steps)
        for group in table.training_groups
    ]
    return rate_table(schedules, length.total_steps)
