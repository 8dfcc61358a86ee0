"""Each schedule as an optax schedule, and the whole run's rates as one `[steps + 1, groups]` array.

Rates are data: the train step receives a row of the array, so a new rate, schedule or warm-up
compiles nothing, and the log holds exactly the rate that the optimizer used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.durations import ZERO, Duration, Pace, resolve_steps
from jaxft.errors import UserError

# A schedule of one's own: optimizer step -> multiplier of the peak rate.
Multiplier = Callable[[Any], Any]
FALL = Duration(20, "percent")


@dataclass(frozen=True)
class Schedule:
    """A schedule by name, whose durations are resolved when the length of the run is known.

    Attributes:
        kind: constant, linear, cosine, wsd, slanted_triangular or inverse_sqrt.
        warmup: the length of the linear rise from zero to the peak.
        end: the rate at the last step, as a fraction of the peak (linear, cosine, wsd).
        decay: the length of the fall at the end (wsd).
        cut_frac: the share of the run over which `slanted_triangular` climbs.
        ratio: peak over lowest rate (slanted_triangular).
    """

    kind: str = "linear"
    warmup: Duration = ZERO
    end: float = 0.0
    decay: Duration = FALL
    cut_frac: float = 0.1
    ratio: float = 32.0


CONSTANT = Schedule("constant")


def schedule_kind(schedule: Schedule | Multiplier | None) -> str | None:
    """Name a schedule for people: its kind, or `own` for a function; None of none."""
    if schedule is None:
        return None
    return schedule.kind if isinstance(schedule, Schedule) else "own"


def make_schedule(
    schedule: Schedule | Multiplier, peak: float, total_steps: int, pace: Pace | float = 1
) -> optax.Schedule:
    """Make the function from an optimizer step, 0 to `total_steps`, to a rate.

    Args:
        schedule: by name, or a function step -> multiplier.
        peak: the highest rate.
        total_steps: optimizer steps that the schedule runs over.
        pace: through the examples, or the steps in an epoch, which durations may be given in.

    Raises:
        UserError: the durations do not fit into the run.
    """
    if not isinstance(schedule, Schedule):
        return lambda step: peak * schedule(step)
    warmup = resolve_steps(schedule.warmup, total_steps, pace, start=True)
    decay = resolve_steps(schedule.decay, total_steps, pace)
    if schedule.kind == "slanted_triangular":
        if warmup:
            raise UserError(
                "schedule.warmup: slanted_triangular climbs by itself.",
                "Set schedule.cut_frac and leave schedule.warmup at 0.",
            )
        return _slanted_triangular(peak, total_steps, schedule.cut_frac, schedule.ratio)
    rest = total_steps - warmup
    if rest < 0 or (schedule.kind == "wsd" and decay > rest):
        needed = warmup + (decay if schedule.kind == "wsd" else 0)
        raise UserError(
            f"schedule: warm-up and decay need {needed} steps, and the run has {total_steps}.",
            "Shorten schedule.warmup or lengthen train.length.",
        )
    after = _after_warmup(schedule, peak, rest, warmup, decay)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _after_warmup(
    schedule: Schedule, peak: float, steps: int, warmup: int, decay: int
) -> optax.Schedule:
    steps = max(steps, 1)
    match schedule.kind:
        case "constant":
            return optax.constant_schedule(peak)
        case "linear":
            return optax.linear_schedule(peak, peak * schedule.end, steps)
        case "cosine":
            return optax.cosine_decay_schedule(peak, steps, alpha=schedule.end)
        case "wsd":
            fall = optax.linear_schedule(peak, peak * schedule.end, max(decay, 1))
            return optax.join_schedules([optax.constant_schedule(peak), fall], [steps - decay])
        case "inverse_sqrt":
            # Vaswani et al. 2017, equation 3, scaled so that the warm-up ends at the peak.
            knee = max(warmup, 1)
            return lambda step: peak * jnp.sqrt(knee / (knee + jnp.asarray(step, jnp.float32)))
        case _:
            raise UserError(f"schedule.kind: '{schedule.kind}' is not a schedule.")


def _slanted_triangular(peak: float, total: int, cut_frac: float, ratio: float) -> optax.Schedule:
    """Howard and Ruder 2018 (ULMFiT), section 3.2."""
    cut = max(math.floor(total * cut_frac), 1)

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        climb = step / cut
        fall = 1 - (step - cut) / max(total - cut, 1)
        share = jnp.where(step < cut, climb, fall)
        return peak * (1 + share * (ratio - 1)) / ratio

    return schedule


def rate_table(schedules: Sequence[optax.Schedule], total_steps: int) -> np.ndarray:
    """Tabulate every group's rate at every step: `[total_steps + 1, groups]` float32."""
    steps = jnp.arange(total_steps + 1)
    columns = [np.asarray(jax.vmap(schedule)(steps), np.float32) for schedule in schedules]
    return np.stack([np.broadcast_to(column, steps.shape) for column in columns], axis=1)
