"""Learning of the learning rates: gradient descent on a multiplier for each depth.

One round trains from the checkpoint for some steps, differentiates the loss on the eval rows by the
logarithm of every multiplier, and moves the multipliers against it. Each draw does this with
training rows of its own; the curves of the draws give an interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxft.config.load import Config
from jaxft.device.mesh import replicated
from jaxft.device.process import return_freed_memory
from jaxft.engine.initial_state import frozen_params, initial_state
from jaxft.engine.state import TrainState
from jaxft.engine.step import Batch, Params
from jaxft.errors import UserError
from jaxft.studies.tuning.derivative import derivative, mean_gradient
from jaxft.studies.tuning.problem import Problem, train_batches
from jaxft.training.rates.multipliers import measures_rates

STEP_SIZE = 0.3  # of a round, in the logarithm of a multiplier: Adam's first step is that long
FURTHEST = math.log(1000)  # of a multiplier from the config's own
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Draw:
    """Course of one draw.

    Attributes:
        losses: `[rounds + 1]`, the mean loss on the eval rows after training, before each round's
            move and at the end.
        logs: `[rounds + 1, depths]`, the logarithms of the multipliers at the same points.
        derivatives: `[rounds, depths]`, of the loss by each of them.
    """

    losses: tuple[float, ...]
    logs: tuple[tuple[float, ...], ...]
    derivatives: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tuned:
    """Learned multipliers, one a depth, from the lowest depth that trains to the highest.

    Attributes:
        depths: the depths.
        base: `[depths]`, the config's own multiplier: the geometric mean over the depth's leaves.
        learned: `[depths]`, the factors that were learned: the geometric mean over the draws.
        multipliers: `[depths]`, those times the config's own.
        low, high: `[depths]`, their 95% interval over the draws (Student's t of the logarithms).
        loss_before, loss_after: the mean loss on the eval rows after training with the config's
            own multipliers and with those of each draw, mean over the draws.
        steps: of training, for each round.
        draws: the course of each.
    """

    depths: tuple[int, ...]
    base: tuple[float, ...]
    learned: tuple[float, ...]
    multipliers: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    loss_before: float
    loss_after: float
    steps: int
    draws: tuple[Draw, ...]

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1)


def check_tunable(config: Config, steps: int, rounds: int, draws: int) -> None:
    """Refuse what has no derivative by a multiplier, or would not end.

    Raises:
        UserError: naming the option or key.
    """
    for name, value, least in (
        ("--steps", steps, 1),
        ("--rounds", rounds, 1),
        ("--draws", draws, 2),
    ):
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value}.")
    if config.phases:
        raise UserError(
            "phases: the rates of one phase are learned at a time, and this config has several.",
            "Remove the key phases, or pass phases=[].",
        )
    if config.sampling.method is not None:
        raise UserError(
            "sampling: rates are learned for all blocks at once, and sampled blocks take turns.",
            "Remove the key sampling, or pass sampling.method=null.",
        )
    if measures_rates(config):
        raise UserError(
            f"layer_decay.preset: {config.layer_decay.preset} measures the multipliers during the "
            "run, so there are none to learn from.",
            "Use mae, timm or electra.",
        )
    if config.regularise.l2_sp:
        raise UserError("regularise.l2_sp: not supported by tune-rates.", "Pass regularise={}.")


def tune(
    problem: Problem,
    *,
    steps: int,
    rounds: int,
    draws: int,
    progress: Callable[[int, int, float], None] = lambda draw, done, loss: None,
) -> Tuned:
    """Learn a multiplier for each depth.

    Args:
        problem: the run.
        steps: of training, for each round.
        rounds: moves of the multipliers.
        draws: of training rows.
        progress: called after each training with the draw, the rounds done and the eval loss.
    """
    return tuned_of(
        problem,
        steps,
        [
            learn_draw(problem, number, steps, rounds, partial(progress, number))
            for number in range(draws)
        ],
    )


def tuned_of(problem: Problem, steps: int, courses: Sequence[Draw]) -> Tuned:
    """Return the multipliers that draws have learned, with their intervals.

    Args:
        problem: the run.
        steps: of training, for each round.
        courses: of the draws, two or more.
    """
    ends = np.array([course.logs[-1] for course in courses])
    leaves = [leaf for leaf in problem.now.table.leaves if leaf.trainable]
    base = np.array(
        [
            stats.gmean([leaf.multiplier for leaf in leaves if leaf.depth == depth])
            for depth in problem.depths
        ]
    )
    mean, reach = ends.mean(0), _reach(ends)
    return Tuned(
        depths=problem.depths,
        base=tuple(base.tolist()),
        learned=tuple(np.exp(mean).tolist()),
        multipliers=tuple((base * np.exp(mean)).tolist()),
        low=tuple((base * np.exp(mean - reach)).tolist()),
        high=tuple((base * np.exp(mean + reach)).tolist()),
        loss_before=float(np.mean([course.losses[0] for course in courses])),
        loss_after=float(np.mean([course.losses[-1] for course in courses])),
        steps=steps,
        draws=tuple(courses),
    )


def learn_draw(
    problem: Problem,
    number: int,
    steps: int,
    rounds: int,
    progress: Callable[[int, float], None],
) -> Draw:
    """Move the multipliers of one draw for some rounds.

    Args:
        problem: the run.
        number: of the draw, from 0; it decides the training rows.
        steps: of training, for each round.
        rounds: moves of the multipliers.
        progress: called after each training with the rounds done and the eval loss.
    """
    setup, now = problem.setup, problem.now
    batches = train_batches(setup, number * steps, steps)
    state = initial_state(setup, now, problem.params)
    frozen = frozen_params(setup, now, problem.params)
    logs = jax.device_put(jnp.zeros(len(problem.depths)), replicated(setup.mesh))
    # The step size falls to nothing, so that the curve comes to rest.
    descent = optax.adam(optax.cosine_decay_schedule(STEP_SIZE, rounds), b1=0.8, b2=0.95)
    moments = descent.init(logs)
    losses, course, derivatives = [], [logs], []
    for done in range(rounds + 1):
        loss, slope = _loss_and_derivative(problem, logs, state, frozen, batches)
        return_freed_memory()  # a training takes gigabytes at once, and the heap has holes by now
        losses.append(_finite(loss, steps))
        progress(done, losses[-1])
        if done < rounds:
            move, moments = descent.update(slope, moments, logs)
            logs = jnp.clip(optax.apply_updates(logs, move), -FURTHEST, FURTHEST)
            derivatives.append(slope)
            course.append(logs)
    return Draw(tuple(losses), _rows(course), _rows(derivatives))


def untrained_loss(problem: Problem) -> float:
    """Compute the mean loss on the eval rows before any step."""
    state = initial_state(problem.setup, problem.now, problem.params)
    frozen = frozen_params(problem.setup, problem.now, problem.params)
    score = partial(problem.score, frozen)
    return float(mean_gradient(score, state.trainable, problem.eval_batches)[0])


def _loss_and_derivative(
    problem: Problem, logs: jax.Array, state: TrainState, frozen: Params, batches: Batch
) -> tuple[float, jax.Array]:
    """Return the eval loss after a training, and its derivatives by the multipliers.

    The trained parameters and theirs, one more for each multiplier, live no longer than this.
    """
    end = problem.train(logs, state, frozen, batches)
    score = partial(problem.score, frozen)
    loss, gradient = mean_gradient(score, end.trainable, problem.eval_batches)
    return float(loss), jax.block_until_ready(derivative(end.tangents, gradient))


def _finite(loss: float, steps: int) -> float:
    if not math.isfinite(loss):
        raise UserError(
            f"The loss on the eval rows is not finite after {steps} steps.",
            "Lower optimizer.lr or --steps.",
        )
    return loss


def _rows(arrays: list[jax.Array]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(np.asarray(array, float).tolist()) for array in arrays)


def _reach(ends: np.ndarray) -> np.ndarray:
    """Return half the interval of the mean of `[draws, depths]` logarithms: `[depths]`."""
    draws = len(ends)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, draws - 1)
    return np.asarray(quantile * ends.std(0, ddof=1) / math.sqrt(draws))
