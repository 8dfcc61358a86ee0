"""Sampling: one step from noise towards data, and all of them as one program.

Every step here is linear in the sample, in the data and the noise that the model's output implies,
and in the data that it implied a step before; `samplers` computes the coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Numbers = Any  # an array of the host or of a device


class Steps(NamedTuple):
    """Steps of a sampler, N numbers each.

    Attributes:
        timestep: what the model is told.
        scale: the sample's factor before the model reads it.
        signal, level: factors of data and noise in what the model reads.
        of_sample, of_data, of_noise, of_previous: factors of the sample, of the data and noise that
            the output implies, and of the data that the previous one implied, in the next sample.
    """

    timestep: Numbers
    scale: Numbers
    signal: Numbers
    level: Numbers
    of_sample: Numbers
    of_data: Numbers
    of_noise: Numbers
    of_previous: Numbers


@dataclass(frozen=True)
class Sampler:
    """Sampler of a schedule with a number of steps.

    Args:
        prediction: what the model predicts, as `Schedule.prediction`.
        steps: its steps.
        start: the standard deviation of the noise that it starts from.
        clip: the largest absolute value of the implied data; None for any.
    """

    prediction: str
    steps: Steps
    start: float
    clip: float | None


def implied(
    prediction: str, x: jax.Array, output: jax.Array, signal: Numbers, level: Numbers
) -> tuple[jax.Array, jax.Array]:
    """Return the data and the noise that a model's output implies of what it read.

    Args:
        prediction: as `Schedule.prediction`.
        x, output: [B, ...] each.
        signal, level: the factors of data and noise in `x`, scalars.
    """
    if prediction == "epsilon":
        return (x - level * output) / signal, output
    if prediction == "sample":
        return output, (x - signal * output) / level
    if prediction == "flow":
        return x - level * output, x + signal * output
    return signal * x - level * output, signal * output + level * x


def next_sample(
    sampler: Sampler, step: Steps, x: jax.Array, output: jax.Array, previous: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Take one step.

    Args:
        sampler: whose.
        step: its numbers, scalars.
        x: the sample, [B, ...].
        output: what the model made of `x * step.scale`.
        previous: the data that the output before implied; anything at the first step.

    Returns:
        The next sample, and the data that the output implied.
    """
    read = x * step.scale
    data, noise = implied(sampler.prediction, read, output, step.signal, step.level)
    data = data if sampler.clip is None else data.clip(-sampler.clip, sampler.clip)
    following = step.of_sample * x + step.of_data * data + step.of_noise * noise
    return following + step.of_previous * previous, data


Denoise = Callable[[jax.Array, Numbers], jax.Array]


def sample(sampler: Sampler, denoise: Denoise, noise: jax.Array) -> jax.Array:
    """Sample from noise, as one `lax.scan` over the steps.

    Args:
        sampler: the steps.
        denoise: what the model reads [B, C, H, W] and the timestep, a scalar -> its output.
        noise: [B, C, H, W], of standard deviation 1.

    Returns:
        [B, C, H, W] float32.
    """

    def take(carry: tuple[jax.Array, jax.Array], step: Steps) -> tuple[tuple, None]:
        x, previous = carry
        return next_sample(sampler, step, x, denoise(x * step.scale, step.timestep), previous), None

    steps = Steps(*map(jnp.asarray, sampler.steps))
    start = noise.astype(jnp.float32) * sampler.start
    (x, _), _ = jax.lax.scan(take, (start, jnp.zeros_like(start)), steps)
    return x
