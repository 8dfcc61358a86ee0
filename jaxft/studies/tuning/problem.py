"""The run whose rates are learned: its batches, its steps and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.analysis.layer_criteria.choices import make_choices
from jaxft.config.load import Config
from jaxft.data.batching.loader import batches
from jaxft.device.mesh import batch_sharding, place_batch, replicated
from jaxft.engine.evaluate import evaluation_plan
from jaxft.engine.initial_state import load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import PhaseSetup, Setup, build, compared_of, objective_of
from jaxft.engine.state import TrainState
from jaxft.engine.step import Batch, Params, step_function
from jaxft.report.terminal.console import EscapingConsole
from jaxft.studies.tuning.derivative import Multipliers, trained
from jaxft.training.batches import training_batches

PLAIN = {"moments": "float32", "fused": False}


@dataclass(frozen=True)
class Problem:
    """The run whose rates are learned: all that is the same in every draw.

    Attributes:
        setup, now: the run and its one phase.
        params: every parameter of the checkpoint.
        multipliers: what is learned.
        depths: the depth of each.
        eval_batches: of the eval rows.
        train: `(logs, state, frozen, batches)` to the parameters and their derivatives.
        score: `(frozen, trainable, batch)` to the eval loss's sum and weight, and its gradient.
    """

    setup: Setup
    now: PhaseSetup
    params: Params
    multipliers: Multipliers
    depths: tuple[int, ...]
    eval_batches: tuple[Batch, ...]
    train: Callable[..., Any]
    score: Callable[..., Any]


def open_problem(config: Config, steps: int, most_eval_batches: int) -> Problem:
    """Build the run, load the checkpoint, and make the programs.

    Args:
        config: the run, which `check_tunable` has passed.
        steps: of training, for each round.
        most_eval_batches: of the eval rows, the first so many batches are scored.
    """
    # An average would lag behind so few steps; rounded and fused updates have no derivative.
    sections = {
        "train": config.train.model_copy(update={"ema": None}),
        "optimizer": config.optimizer.model_copy(update=PLAIN),
    }
    config = make_choices(config, EscapingConsole(stderr=True))
    setup = build(config.model_copy(update=sections))
    (now,) = phase_setups(setup)
    leaves = [leaf for leaf in now.table.leaves if leaf.trainable]
    depths = tuple(sorted({leaf.depth for leaf in leaves}))
    index = np.array([depths.index(leaf.depth) for leaf in leaves])
    multipliers = Multipliers(now.table.multipliers(), index, len(depths))
    objective = objective_of(setup, now.compute)
    step = step_function(
        objective,
        now.optimizer,
        accumulate=config.train.accumulate,
        ema=None,
        rows=batch_sharding(setup.mesh),
        compared=compared_of(setup, now.compute),
    )
    # A warm-up of the whole run would be all that so few steps see: rates are those at their peak.
    peak = now.rates[now.rates.max(axis=1).argmax()]
    rates = jnp.asarray(np.repeat(peak[None], steps, axis=0))
    decays = jnp.asarray(now.table.weight_decays())

    def train(logs: jax.Array, state: TrainState, frozen: Params, batches: Batch) -> Any:
        return trained(step, multipliers, logs, state, frozen, batches, rates, decays)

    def summed(trainable: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, Any]:
        total, weight = objective({**frozen, **trainable}, batch, None)["loss"]
        return total, (total, weight)

    def score(frozen: Params, trainable: Params, batch: Batch) -> Any:
        gradients, sums = jax.grad(summed, has_aux=True)(trainable, frozen, batch)
        return sums, gradients

    return Problem(
        setup,
        now,
        load_params(setup).params,
        multipliers,
        depths,
        tuple(_eval_batches(setup, most_eval_batches)),
        jax.jit(train, out_shardings=replicated(setup.mesh)),
        jax.jit(score),
    )


def train_batches(setup: Setup, first: int, count: int) -> Batch:
    """Make the batches of some steps of the run, stacked: name -> `[steps, ...]`."""
    collate = setup.splits["train"].examples.collate
    sharding = batch_sharding(setup.mesh)
    made = [
        place_batch(batch, sharding)
        for batch in training_batches(setup, collate, first, first + count)
    ]
    return {name: jnp.stack([one[name] for one in made]) for name in made[0]}


def _eval_batches(setup: Setup, most: int) -> Iterator[Batch]:
    """Make the first batches of the eval rows."""
    examples = setup.splits["eval"].examples
    plan = evaluation_plan(setup.layout, examples)
    sharding = batch_sharding(setup.mesh)
    for batch in batches(plan, examples.collate, 0, min(len(plan), most)):
        yield place_batch(batch, sharding)
