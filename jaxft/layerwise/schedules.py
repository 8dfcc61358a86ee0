"""Each schedule as an optax schedule, and the whole run's rates as one `[steps + 1, groups]` array.

Rates are data: the train step receives a row of the array, so a new rate, schedule or warm-up
compiles nothing, and what the log says is what the optimizer used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.errors import UserError


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule with its durations resolved to steps.

    Attributes:
        kind: constant, linear, cosine, wsd, slanted_triangular or inverse_sqrt.
        warmup: steps over which the rate climbs from zero to its peak.
        end: the rate at the last step, as a fraction of the peak (linear, cosine, wsd).
        decay: the last steps, over which `wsd` falls.
        cut_frac: the share of the run over which `slanted_triangular` climbs.
        ratio: how much lower than its peak `slanted_triangular` starts and ends.
    """

    kind: str
    warmup: int = 0
    end: float = 0.0
    decay: int = 0
    cut_frac: float = 0.1
    ratio: float = 32.0


def make_schedule(spec: ScheduleSpec, peak: float, total_steps: int) -> optax.Schedule:
    """The rate at each optimizer step, from 0 to `total_steps`.

    Args:
        spec: the kind of schedule and its durations in steps.
        peak: the highest rate.
        total_steps: optimizer steps in the run.

    Returns:
        A function from a step (scalar or array) to a rate.

    Raises:
        UserError: the durations do not fit into the run.
    """
    if spec.kind == "slanted_triangular":
        if spec.warmup:
            raise UserError(
                "schedule.warmup: slanted_triangular climbs by itself.",
                "Set schedule.cut_frac and leave schedule.warmup at 0.",
            )
        return _slanted_triangular(peak, total_steps, spec.cut_frac, spec.ratio)
    rest = total_steps - spec.warmup
    if rest < 0 or (spec.kind == "wsd" and spec.decay > rest):
        needed = spec.warmup + (spec.decay if spec.kind == "wsd" else 0)
        raise UserError(
            f"schedule: warm-up and decay need {needed} steps, and the run has {total_steps}.",
            "Shorten schedule.warmup or lengthen train.length.",
        )
    after = _after_warmup(spec, peak, rest)
    if not spec.warmup:
        return after
    warmup = optax.linear_schedule(0.0, peak, spec.warmup)
    return optax.join_schedules([warmup, after], [spec.warmup])


def _after_warmup(spec: ScheduleSpec, peak: float, steps: int) -> optax.Schedule:
    steps = max(steps, 1)
    match spec.kind:
        case "constant":
            return optax.constant_schedule(peak)
        case "linear":
            return optax.linear_schedule(peak, peak * spec.end, steps)
        case "cosine":
            return optax.cosine_decay_schedule(peak, steps, alpha=spec.end)
        case "wsd":
            decay = optax.linear_schedule(peak, peak * spec.end, max(spec.decay, 1))
            return optax.join_schedules(
                [optax.constant_schedule(peak), decay], [steps - spec.decay]
            )
        case "inverse_sqrt":
            # Vaswani et al. 2017, equation 3, scaled so that the warm-up ends at the peak.
            knee = max(spec.warmup, 1)
            return lambda step: peak * jnp.sqrt(knee / (knee + jnp.asarray(step, jnp.float32)))
        case _:
            raise UserError(f"schedule.kind: '{spec.kind}' is not a schedule.")


def _slanted_triangular(peak: float, total: int, cut_frac: float, ratio: float) -> optax.Schedule:
    """Howard and Ruder 2018 (ULMFiT), section 3.2."""
    cut = max(math.floor(total * cut_frac), 1)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        climb = step / cut
        fall = 1 - (step - cut) / max(total - cut, 1)
        share = jnp.where(step < cut, climb, fall)
        return peak * (1 + share * (ratio - 1)) / ratio

    return schedule


def rate_table(schedules: Sequence[optax.Schedule], total_steps: int) -> np.ndarray:
    """Every group's rate at every step: `[total_steps + 1, groups]` float32."""
    steps = jnp.arange(total_steps + 1)
    columns = [np.asarray(jax.vmap(schedule)(steps), np.float32) for schedule in schedules]
    return np.stack([np.broadcast_to(column, steps.shape) for column in columns], axis=1)
