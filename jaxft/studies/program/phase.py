"""Phase of members that train together: programs, leaves, and the inputs of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxft.engine.evaluate import EvalStep, run_split, summarise
from jaxft.engine.initial_state import frozen_params
from jaxft.engine.inputs import Split
from jaxft.engine.setup import PhaseSetup, Setup, phase_setup
from jaxft.engine.state import TrainState
from jaxft.engine.step import StepInputs
from jaxft.studies.program.state import Start, enter_phase, initial_states, load_start
from jaxft.studies.program.step import make_study_eval, make_study_step, trained_params


class Programs:
    """Jitted steps and evaluations of a bucket, one per phase and mesh."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, jax.sharding.Mesh], tuple[Any, EvalStep]] = {}

    def of(
        self, setup: Setup, now: PhaseSetup, states: TrainState, frozen: dict
    ) -> tuple[Any, EvalStep]:
        """Return those of a phase, made at the first call."""
        key = now.phase.index, setup.mesh
        if key not in self._made:
            step = make_study_step(setup, now, states, frozen)
            self._made[key] = step, make_study_eval(setup, now, states, frozen)
        return self._made[key]


class Stage:
    """Phase of a part during training: its leaves, programs and step inputs."""

    def __init__(
        self,
        setups: Sequence[Setup],
        phases: Sequence[PhaseSetup],
        states: TrainState,
        frozen: dict,
        programs: Programs,
    ):
        self.setups, self.phases = tuple(setups), tuple(phases)
        self.setup, self.now = self.setups[0], self.phases[0]
        self.frozen = frozen
        self.step, self._evaluate = programs.of(self.setup, self.now, states, frozen)
        self._multipliers = [one.table.multipliers() for one in phases]  # K x [leaves]

    def inputs(self, step: int) -> StepInputs:
        """Return the inputs of the members' optimizers at a step, `[K, ...]` float32."""
        members = zip(self.phases, self._multipliers, strict=True)
        inputs = [one.inputs(step, multipliers) for one, multipliers in members]
        return jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float32), *inputs)

    def is_over(self, step: int) -> bool:
        """Return whether the step to come belongs to the next phase."""
        return self.setup.is_over(self.now.phase, step)

    def next(self, states: TrainState, programs: Programs) -> tuple[Stage, TrainState]:
        """Make the next phase, and the states as it begins."""
        phases = phases_of(self.setups, self.now.phase.index + 1)
        entered = enter_phase(self.setups, phases[0], states, self.frozen)
        trained = entered.trainable.keys() | entered.previously_trained.keys()
        frozen = {name: leaf for name, leaf in self.frozen.items() if name not in trained}
        return Stage(self.setups, phases, entered, frozen, programs), entered

    def score(self, states: TrainState, name: str = "eval") -> list[dict[str, float]]:
        """Score each member on the rows of a split."""
        split = self.setup.splits[name]
        params = (trained_params(states), self.frozen)
        results = list(
            run_split(self.setup.mesh, self.setup.layout, self._evaluate, params, split.examples)
        )
        return [
            self._scores([jax.tree.map(lambda array, i=i: array[i], r) for r in results], split)
            for i in range(len(self.setups))
        ]

    def _scores(self, results: list[tuple[dict, dict]], split: Split) -> dict[str, float]:
        """Score one member; NaN where its outputs are not finite, which tasks cannot handle."""
        if not all(np.isfinite(sums["loss"][0]) for sums, _ in results):
            return dict.fromkeys(self.setup.task.metrics, math.nan)
        return summarise(self.setup.bound, split, results).scores


def phases_of(setups: Sequence[Setup], index: int) -> tuple[PhaseSetup, ...]:
    """Set up one phase of each member."""
    return tuple(phase_setup(setup, setup.phases[index]) for setup in setups)


def begin(
    setups: Sequence[Setup], phases: Sequence[PhaseSetup], programs: Programs
) -> tuple[Stage, TrainState, Start]:
    """Make the first phase of some members, their states, and their initial parameters.

    Args:
        setups: one per member.
        phases: the first phase of each.
        programs: of their bucket.
    """
    start = load_start(setups)
    states = initial_states(setups, phases[0], start)
    shared = frozen_params(setups[0], phases[0], start.params)
    frozen = {name: leaf for name, leaf in shared.items() if name not in states.previously_trained}
    return Stage(setups, phases, states, frozen, programs), states, start


def enter(
    setups: Sequence[Setup], step: int, programs: Programs
) -> tuple[Stage, TrainState, Start]:
    """Make the phase that some members are in after `step`, with untrained states of its shapes.

    Args:
        setups: one per member.
        step: updates done.
        programs: of their bucket.
    """
    stage, states, start = begin(setups, phases_of(setups, 0), programs)
    while stage.is_over(stage.now.phase.stop) and stage.now.phase.stop < step:
        stage, states = stage.next(states, programs)
    return stage, states, start
