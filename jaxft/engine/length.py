"""Durations of a config in optimizer steps, and the learning rates at each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxft.bounds import MOST_STEPS
from jaxft.config.load import Config
from jaxft.data.batching.plans import TrainPlan
from jaxft.durations import resolve_steps
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

    Raises:
        UserError: the run would have no step, or too many.
    """
    train = config.train
    per_epoch = plan.steps_per_epoch
    total = resolve_steps(train.length, None, per_epoch)
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
        steps_per_epoch=per_epoch,
        evaluate_every=resolve_steps(train.evaluate_every, total, per_epoch),
        save_every=resolve_steps(config.checkpoint.every, total, per_epoch),
        layers_every=resolve_steps(config.report.layers_every, total, per_epoch),
        rates_every=resolve_steps(config.layer_decay.every, total, per_epoch),
        freeze_every=max(resolve_steps(config.freezing.every, total, per_epoch), 1),
        sample_every=_sample_every(config, total, per_epoch),
    )


def _sample_every(config: Config, total: int, per_epoch: int) -> int:
    """Return the steps between choices of blocks; 0 where blocks are not sampled."""
    if config.sampling.method is None:
        return 0
    return max(resolve_steps(config.sampling.every, total, per_epoch), 1)


def resolve_rates(phase: Phase, length: Length) -> np.ndarray:
    """Compute the rates of the training groups in a phase: `[steps + 1, groups]` float32.

    Rows are the run's steps; those outside the phase are 0. A phase's own schedule spans the
    phase, every other schedule spans the run.
    """
    spec = phase.spec
    first, steps = (0, length.total_steps)
    if spec.schedule is not None:
        first, steps = phase.start, phase.stop - phase.start
    table = rate_table(
        [
            make_schedule(
                spec.schedule or group.schedule or CONSTANT,
                group.peak_rate,
                steps,
                length.steps_per_epoch,
            )
            for group in phase.table.training_groups
        ],
        steps,
    )
    rates = np.zeros((length.total_steps + 1, table.shape[1]), np.float32)
    inside = slice(phase.start, phase.stop + 1)
    rates[inside] = table[phase.start - first : phase.stop + 1 - first]
    rewarm = resolve_steps(spec.rewarm, length.total_steps, length.steps_per_epoch)
    if rewarm:
        rise = np.minimum(np.arange(phase.stop + 1 - phase.start, dtype=np.float32) / rewarm, 1)
        rates[inside] *= rise[:, None]
    return rates
