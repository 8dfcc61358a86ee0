"""Samplers: the coefficients of each step from noise to data, for one program to run over.

They are computed on the host, in numpy, with `diffusers`' rounding.

Source: DDIM: Song et al. (2020), https://arxiv.org/abs/2010.02502; Euler: Karras et al. (2022),
https://arxiv.org/abs/2206.00364; DPM-Solver++: Lu et al. (2022), https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxft.errors import UserError
from jaxft.models.diffusion.sample import Sampler, Steps
from jaxft.models.diffusion.schedule import CLASSES, Schedule

RHO = 7.0  # of Karras' noise levels
SMALLEST = (
    2.0**-24
)  # signal that is left where a schedule leaves none, so that no level is infinite
FEW = 15  # steps below which DPM-Solver++ ends with a step of first order


def make_sampler(schedule: Schedule, count: int, kind: str = "auto") -> Sampler:
    """Make a sampler.

    Args:
        schedule: the pipeline's.
        count: steps.
        kind: `ddim`, `euler`, `dpm++` or `flow`; `auto` for the schedule's own.

    Raises:
        UserError: it does not fit the schedule, or there are too many steps.
    """
    kind = CLASSES[schedule.name] if kind == "auto" else kind
    if count > schedule.steps:
        raise UserError(
            f"{count} steps of sampling are more than the {schedule.steps} of training."
        )
    if schedule.is_flow != (kind == "flow"):
        raise UserError(
            f"The sampler '{kind}' does not fit the scheduler {schedule.name}.",
            "A pipeline of flow matching is sampled by 'flow', any other by ddim, euler or dpm++.",
        )
    steps, start = MAKERS[kind](schedule, count)
    default = schedule.name in ("DDIMScheduler", "DDPMScheduler")
    clips = schedule.fields["clip_sample"]
    clips = (default if clips is None else clips) and kind == "ddim"
    arrays = Steps(*(np.asarray(np.broadcast_to(one, count), np.float32) for one in steps))
    clip = schedule.fields["clip_sample_range"] if clips else None
    return Sampler(schedule.prediction, arrays, float(start), clip)


def _spaced(schedule: Schedule, count: int, default: str, whole: bool = True) -> np.ndarray:
    """Return the steps of training at which a sampler calls the model, descending."""
    spacing = schedule.fields["timestep_spacing"] or default
    total, offset = schedule.steps, schedule.fields["steps_offset"]
    if spacing == "linspace":
        places = np.linspace(0, total - 1, count, dtype=np.float64 if whole else np.float32)[::-1]
        return places.round() if whole else places
    if spacing == "leading":
        return (np.arange(count) * (total // count))[::-1] + offset
    return np.round(np.arange(total, 0, -total / count)) - 1


def _ddim(schedule: Schedule, count: int) -> tuple[Steps, float]:
    steps = _spaced(schedule, count, "leading").astype(np.int64)
    _check_range(steps, schedule)
    before = steps - schedule.steps // count
    to_one = schedule.fields["set_alpha_to_one"]
    to_one = schedule.name != "PNDMScheduler" if to_one is None else to_one
    last = np.float32(1.0) if to_one else schedule.shares[0]
    shares = np.where(before >= 0, schedule.shares[np.maximum(before, 0)], last).astype(np.float32)
    signal, level = schedule.levels(steps)
    nothing = np.zeros(count)
    ends = (np.ones(count), signal, level, nothing, np.sqrt(shares), np.sqrt(1 - shares), nothing)
    return Steps(steps, *ends), 1.0


def _check_range(steps: np.ndarray, schedule: Schedule) -> None:
    if steps.max() >= schedule.steps or steps.min() < 0:
        raise UserError(
            f"scheduler_config.json: steps_offset {schedule.fields['steps_offset']} leads past the "
            f"last of {schedule.steps} steps."
        )


def _ratios(schedule: Schedule) -> np.ndarray:
    """Return noise over signal at each step of training: [T], increasing."""
    shares = schedule.shares.copy()
    if schedule.fields["rescale_betas_zero_snr"]:
        shares[-1] = SMALLEST
    return ((1 - shares) / shares) ** np.float32(0.5)


def _karras(ratios: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Karras' noise levels between the largest and the smallest, and their steps."""
    first, last = float(ratios[0]), float(ratios[-1])
    ramp = np.linspace(0, 1, count)
    levels = (first ** (1 / RHO) + ramp * (last ** (1 / RHO) - first ** (1 / RHO))) ** RHO
    return levels, levels


def _steps_of(levels: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Return the steps, whole or not, at which noise over signal is `levels`, by its logarithm."""
    logs = np.log(ratios)
    wanted = np.log(np.maximum(levels, 1e-10))
    below = np.cumsum(wanted - logs[:, None] >= 0, 0).argmax(0).clip(max=len(logs) - 2)
    low, high = logs[below], logs[below + 1]
    share = ((low - wanted) / (low - high)).clip(0, 1)
    return (1 - share) * below + share * (below + 1)


def _last_ratio(schedule: Schedule, ratios: np.ndarray) -> float:
    return 0.0 if schedule.fields["final_sigmas_type"] == "zero" else float(ratios[0])


def _euler(schedule: Schedule, count: int) -> tuple[Steps, float]:
    if schedule.prediction == "sample":
        raise UserError("The sampler 'euler' takes no model that predicts the sample.", "Use ddim.")
    ratios = _ratios(schedule)
    steps = _spaced(schedule, count, "linspace", whole=False).astype(np.float32)
    levels = np.interp(steps, np.arange(len(ratios)), ratios)
    if schedule.fields["use_karras_sigmas"]:
        levels, _ = _karras(levels, count)
        steps = _steps_of(levels, ratios)
    sigma = np.append(levels, _last_ratio(schedule, ratios)).astype(np.float32)
    largest = sigma.max()
    leading = (schedule.fields["timestep_spacing"] or "linspace") == "leading"
    here = sigma[:-1]
    signal = 1 / np.sqrt(here**2 + 1)
    nothing = np.zeros(count)
    slopes = (np.ones(count), nothing, np.diff(sigma), nothing)
    start = np.sqrt(largest**2 + 1) if leading else largest
    return Steps(steps, signal, signal, here * signal, *slopes), start


def _dpm(schedule: Schedule, count: int) -> tuple[Steps, float]:
    ratios, fields = _ratios(schedule), schedule.fields
    spacing = fields["timestep_spacing"] or "linspace"
    if spacing == "linspace":
        steps = np.linspace(0, schedule.steps - 1, count + 1).round()[::-1][:-1]
    elif spacing == "leading":
        step = schedule.steps // (count + 1)
        steps = (np.arange(count + 1) * step)[::-1][:-1] + fields["steps_offset"]
    else:
        steps = np.arange(schedule.steps, 0, -schedule.steps / count).round() - 1
    levels = np.interp(steps, np.arange(len(ratios)), ratios)
    if fields["use_karras_sigmas"]:
        levels, _ = _karras(ratios[::-1], count)
        steps = _steps_of(levels, ratios)
        steps = steps if fields["beta_schedule"] == "squaredcos_cap_v2" else steps.round()
    sigma = np.append(levels, _last_ratio(schedule, ratios)).astype(np.float32)
    return Steps(np.trunc(steps), *_dpm_factors(schedule, count, sigma)), 1.0


def _dpm_factors(schedule: Schedule, count: int, sigma: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the numbers of DPM-Solver++'s steps but for the timesteps."""
    fields, wide = schedule.fields, sigma.astype(np.float64)
    signal = 1 / np.sqrt(wide**2 + 1)
    level = wide * signal
    with np.errstate(divide="ignore"):
        logs = -np.log(wide)  # of signal over noise
    gaps = np.diff(logs)
    decay = np.expm1(-gaps)  # -1 where no noise is left
    of_data, of_previous = -signal[1:] * decay, np.zeros(count)
    for index in range(1, count if fields["solver_order"] > 1 else 1):
        last = index == count - 1
        early = fields["euler_at_final"] or (fields["lower_order_final"] and count < FEW)
        if last and (early or fields["final_sigmas_type"] == "zero"):
            continue
        ratio = gaps[index] / gaps[index - 1]
        if fields["solver_type"] == "midpoint":
            change = -0.5 * signal[index + 1] * decay[index] * ratio
        else:
            change = signal[index + 1] * (decay[index] / gaps[index] + 1) * ratio
        of_data[index] += change
        of_previous[index] = -change
    ends = (level[1:] / level[:-1], of_data, np.zeros(count), of_previous)
    return np.ones(count), signal[:-1], level[:-1], *ends


def shifted(levels: np.ndarray, shift: float) -> np.ndarray:
    """Move levels of noise from 0 to 1 towards 1, as larger images need.

    Source: Esser et al. (2024), https://arxiv.org/abs/2403.03206.
    """
    return shift * levels / (1 + (shift - 1) * levels)


def _flow(schedule: Schedule, count: int) -> tuple[Steps, float]:
    shift, total = schedule.fields["shift"], schedule.steps
    whole = shifted(np.arange(1, total + 1, dtype=np.float32) / np.float32(total), shift)
    # As there: the ends are shifted already, and then all levels once more.
    places = np.linspace(whole[-1] * total, whole[0] * total, count) / total
    level = np.append(shifted(places, shift), 0.0).astype(np.float32)
    change = np.diff(level)
    nothing = np.zeros(count)
    slopes = (np.ones(count), -change, change, nothing)
    return Steps(level[:-1] * total, np.ones(count), 1 - level[:-1], level[:-1], *slopes), 1.0


MAKERS: dict[str, Callable[[Schedule, int], tuple[Steps, float]]] = {
    "ddim": _ddim,
    "euler": _euler,
    "dpm++": _dpm,
    "flow": _flow,
}
