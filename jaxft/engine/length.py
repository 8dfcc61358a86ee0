"""Durations of a config in optimizer steps, and the learning rates at each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxft.bounds import MOST_STEPS
from jaxft.config.load import Config
from jaxft.data.batching.plans import Layout, TrainPlan
from jaxft.durations import Duration, Growth, Pace, resolve_steps
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
from jaxft.layerwise.schedules import CONSTANT, make_schedule, rate_table


@dataclass(frozen=True)
class Length:
    """Durations of a run in optimizer steps."""

    total_steps: int
    steps_per_epoch: int
    evaluate_every: int
    save_every: int
    layers_every: int = 0
    rates_every: int = 0
    freeze_every: int = 0
    sample_every: int = 0
    examples_per_step: float | None = None
    growth: Sequence[int] = ()

    @property
    def pace(self) -> Pace:
        """Return the run's pace through its examples."""
        return Pace(self.steps_per_epoch, self.examples_per_step, Growth(tuple(self.growth)))

    def evaluates_at(self, step: int) -> bool:
        """Return whether step `step` is followed by an evaluation: each interval, and the end."""
        return step % self.evaluate_every == 0 or step == self.total_steps

    def saves_at(self, step: int) -> bool:
        """Return whether the state is saved after `step` steps; each evaluation is saved too."""
        return step % self.save_every == 0 or self.evaluates_at(step)

    def logs_layers_at(self, step: int) -> bool:
        """Return whether a step's layers are logged: each interval, the first and the last step."""
        often = self.layers_every
        return bool(often) and (step % often == 0 or step in (1, self.total_steps))


def resolve_length(config: Config, plan: TrainPlan) -> Length:
    """Resolve every duration of a run to steps.

    Args:
        config: the run.
        plan: of its batches.

    Raises:
        UserError: the run would have no step, or too many.
    """
    train = config.train
    per_step = len(plan.lengths) / plan.steps_per_epoch
    pace = Pace(plan.steps_per_epoch, per_step, plan.growth)
    total = resolve_steps(train.length, None, pace, start=True)
    if total < 1:
        raise UserError(f"train.length: '{train.length}' is less than one step.")
    if total > MOST_STEPS:
        raise UserError(
            f"train.length: '{train.length}' is {total:,} steps, and a run has at most "
            f"{MOST_STEPS:,}.",
            "Write a shorter one; `--resume train.length=...` makes a run longer later.",
        )
    return Length(
        total_steps=total,
        steps_per_epoch=plan.steps_per_epoch,
        evaluate_every=resolve_steps(train.evaluate_every, total, pace),
        save_every=resolve_steps(config.checkpoint.every, total, pace),
        layers_every=resolve_steps(config.report.layers_every, total, pace),
        rates_every=resolve_steps(config.layer_decay.every, total, pace),
        freeze_every=max(resolve_steps(config.freezing.every, total, pace), 1),
        sample_every=_sample_every(config, total, pace),
        examples_per_step=per_step,
        growth=plan.growth.steps,
    )


def with_growth(layout: Layout, warmup: Duration | None, parts: int, examples: int) -> Layout:
    """Return a layout whose batches grow from one micro-batch to `parts` of them.

    With a warm-up in examples or epochs the number of micro-batches rises evenly with the examples
    that were read, with one in steps evenly with the steps.

    Args:
        layout: of whole batches.
        warmup: the length of the growth; None for none.
        parts: the micro-batches of a whole batch.
        examples: in an epoch.
    """
    if warmup is None:
        return layout
    count = parts - 1
    if warmup.unit == "steps":
        ends = [round(warmup.value * number / count) for number in range(parts)]
        return replace(layout, growth=tuple(b - a for a, b in itertools.pairwise(ends)))
    whole = warmup.value * (examples if warmup.unit == "epochs" else 1) / layout.examples_per_step
    steps = [math.ceil(whole * parts / (count * number)) for number in range(1, parts)]
    return replace(layout, growth=tuple(steps))


def check_growth(layout: Layout, parts: int) -> None:
    """Raise a UserError where a resumed run's growing batches have other micro-batches."""
    if layout.growth and parts != len(layout.growth) + 1:
        raise UserError(
            f"train.accumulate: this run's batches grow in {len(layout.growth) + 1} micro-batches, "
            f"and {parts} would read other examples.",
            f"Resume with train.accumulate={len(layout.growth) + 1}.",
        )


def _sample_every(config: Config, total: int, pace: Pace) -> int:
    """Return the steps between choices of blocks; 0 where blocks are not sampled."""
    if config.sampling.method is None:
        return 0
    return max(resolve_steps(config.sampling.every, total, pace), 1)


def resolve_rates(
    phase: Phase, length: Length, scale: Literal["linear", "sqrt"] | None = None
) -> np.ndarray:
    """Compute the rates of the training groups in a phase: `[steps + 1, groups]` float32.

    Rows are the run's steps; those outside the phase are 0. A phase's own schedule spans the
    phase, every other schedule spans the run.

    Args:
        phase: one of the run's.
        length: of the run.
        scale: `optimizer.scale`: while the batch grows, rates are those of its size at each step.

    Raises:
        UserError: the warm-up of the phase or of a schedule is longer than it.
    """
    spec = phase.spec
    first, steps, pace = 0, length.total_steps, length.pace
    if spec.schedule is not None:
        first, steps = phase.start, phase.stop - phase.start
        pace = replace(pace, growth=pace.growth if first == 0 else Growth())
    table = rate_table(
        [
            make_schedule(
                spec.schedule or group.schedule or CONSTANT,
                group.peak_rate,
                steps,
                pace,
            )
            for group in phase.table.training_groups
        ],
        steps,
    )
    rates = np.zeros((length.total_steps + 1, table.shape[1]), np.float32)
    inside = slice(phase.start, phase.stop + 1)
    rates[inside] = table[phase.start - first : phase.stop + 1 - first]
    rewarm = resolve_steps(spec.rewarm, length.total_steps, length.pace)
    if rewarm > phase.stop - phase.start:
        raise UserError(
            f"phases[{phase.index}].rewarm is {rewarm:,} steps, and the phase has "
            f"{phase.stop - phase.start:,}: its rate would never reach its peak.",
            "Shorten it.",
        )
    if rewarm:
        rise = np.minimum(np.arange(phase.stop + 1 - phase.start, dtype=np.float32) / rewarm, 1)
        rates[inside] *= rise[:, None]
    if scale is not None and (growth := length.pace.growth).parts > 1:
        growing = range(min(sum(growth.steps), len(rates)))
        shares = np.array([growth.parts_at(step) for step in growing], np.float32) / growth.parts
        rates[: len(shares)] *= (shares if scale == "linear" else np.sqrt(shares))[:, None]
    return rates
