"""Noise schedule of a pipeline: how much noise a step means, as its scheduler_config.json says.

A sample at a step is `signal * data + level * noise`. Where the variance is preserved, the squares
of both factors add up to 1; under flow matching the factors do.

Source: Ho et al. (2020), https://arxiv.org/abs/2006.11239; Lipman et al. (2022),
https://arxiv.org/abs/2210.02747; zero terminal signal: Lin et al. (2023),
https://arxiv.org/abs/2305.08891. The numbers follow `diffusers`' schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import UserError, did_you_mean
from jaxft.models.weights.config_fields import check_fields
from jaxft.models.weights.field_kinds import check_kind
from jaxft.storage.json_files import read_json_object

Numbers = Any  # an array of the host or of a device
CONFIG_FILE = "scheduler_config.json"
# Class of a scheduler -> the sampler that it is; DDPM's and PNDM's configs are sampled by DDIM.
CLASSES = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm++",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "PNDMScheduler": "ddim",
}
FLOW = "FlowMatchEulerDiscreteScheduler"
MOST_STEPS = 10_000
PREDICTIONS = ("epsilon", "v_prediction", "sample")
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": None,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": None,
    "steps_offset": 0,
    "timestep_spacing": None,
    "rescale_betas_zero_snr": False,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "shift": 1.0,
}
FIXED: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf,
    "timestep_type": "discrete",
}
# What the samplers here do not read: of thresholds that are off, and of stochastic steps.
UNREAD = (
    "_class_name",
    "_diffusers_version",
    "_use_default_values",
    "base_image_seq_len",
    "base_shift",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "max_image_seq_len",
    "max_shift",
    "sample_max_value",
    "skip_prk_steps",
    "time_shift_type",
    "variance_type",
)
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": PREDICTIONS,
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_type": ("midpoint", "heun"),
}


@dataclass(frozen=True)
class Schedule:
    """Noise schedule of a pipeline.

    Args:
        name: the class of its scheduler.
        fields: those of scheduler_config.json that are read, none missing.
    """

    name: str
    fields: Mapping[str, Any]

    @property
    def is_flow(self) -> bool:
        """Return whether data and noise are mixed on a straight line."""
        return self.name == FLOW

    @property
    def prediction(self) -> str:
        """Return what the model predicts: `epsilon`, `v_prediction`, `sample` or `flow`."""
        return "flow" if self.is_flow else self.fields["prediction_type"]

    @property
    def steps(self) -> int:
        """Return the number of steps of training, T."""
        return self.fields["num_train_timesteps"]

    @cached_property
    def shares(self) -> np.ndarray:
        """Return the share of the data's variance at each step: [T] float32, decreasing."""
        return _products(self._betas)

    @property
    def _betas(self) -> np.ndarray:
        fields = self.fields
        first, last, kind = fields["beta_start"], fields["beta_end"], fields["beta_schedule"]
        if kind == "linear":
            betas = np.linspace(first, last, self.steps, dtype=np.float32)
        elif kind == "scaled_linear":
            betas = np.linspace(first**0.5, last**0.5, self.steps, dtype=np.float32) ** 2
        else:
            places = np.arange(self.steps + 1) / self.steps
            levels = np.cos((places + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - levels[1:] / levels[:-1], 0.999).astype(np.float32)
        return _without_terminal_signal(betas) if fields["rescale_betas_zero_snr"] else betas

    def levels(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return signal and noise at steps of training: float32 each, of the shape of `steps`."""
        shares = self.shares[steps]
        return np.sqrt(shares), np.sqrt(1 - shares)


def _products(betas: np.ndarray) -> np.ndarray:
    """Return the products of 1 - beta up to each step, with PyTorch's rounding: float32."""
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def _without_terminal_signal(betas: np.ndarray) -> np.ndarray:
    """Rescale betas so that nothing of the data is left at the last step."""
    root = np.sqrt(_products(betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    shares = root**2
    return 1 - np.concatenate([shares[:1], shares[1:] / shares[:-1]]).astype(np.float32)


def read_schedule(folder: Path) -> Schedule:
    """Read a folder's scheduler_config.json.

    Raises:
        UserError: there is none, or a field of it is not supported.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}.", "Fetch the whole pipeline.")
    return schedule_of(read_json_object(path))


def schedule_of(stored: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a scheduler_config.json's content.

    Raises:
        UserError: a field of it is not supported.
    """
    name = stored.get("_class_name")
    if name not in CLASSES:
        raise UserError(
            f"{CONFIG_FILE}: the scheduler '{name}' is not supported.",
            did_you_mean(str(name), CLASSES),
        )
    check_fields(
        {**stored, "model_type": name},
        known=list(DEFAULTS),
        fixed=FIXED,
        ignore=UNREAD,
    )
    fields = {name: stored.get(name, default) for name, default in DEFAULTS.items()}
    for field, default in DEFAULTS.items():
        check_kind(field, fields[field], default)
        if fields[field] is not None and fields[field] not in CHOICES.get(field, (fields[field],)):
            raise UserError(
                f"{CONFIG_FILE}: {field} '{fields[field]}' is not supported.",
                f"Known: {', '.join(CHOICES[field])}.",
            )
    if not 1 <= fields["num_train_timesteps"] <= MOST_STEPS:
        raise UserError(
            f"{CONFIG_FILE}: num_train_timesteps must be a whole number from 1 to {MOST_STEPS:,}."
        )
    if not 0 < fields["beta_start"] <= fields["beta_end"] < 1 or fields["shift"] <= 0:
        raise UserError(f"{CONFIG_FILE}: beta_start, beta_end or shift is out of range.")
    return Schedule(str(name), fields)


def mixed(data: Numbers, noise: Numbers, signal: Numbers, level: Numbers) -> Numbers:
    """Mix data and noise [B, ...] at the levels of each row [B]."""
    shape = (-1, *[1] * (data.ndim - 1))
    return signal.reshape(shape) * data + level.reshape(shape) * noise


def target(
    prediction: str, data: Numbers, noise: Numbers, signal: Numbers, level: Numbers
) -> Numbers:
    """Return what a model is to predict of data and noise [B, ...].

    Args:
        prediction: as `Schedule.prediction`.
        data, noise: what the sample is made of.
        signal, level: their factors, [B] each.

    Source: v: Salimans and Ho (2022), https://arxiv.org/abs/2202.00512.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return data
    if prediction == "flow":
        return noise - data
    return mixed(noise, -data, signal, level)
