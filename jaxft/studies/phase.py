"""A phase of members that train together: its programs, its leaves, and each step's inputs."""

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
from jaxft.studies.state import Start, enter_phase, initial_states, load_start
from jaxft.studies.step import make_study_eval, make_study_step, trained_params


class Programs:
    """A bucket's jitted steps and evaluations, one a phase, for all of its parts."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, EvalStep]] = {}

    def of(
        self, setup: Setup, now: PhaseSetup, states: TrainState, frozen: dict
    ) -> tuple[Any, EvalStep]:
        """Those of a phase; made from what first asked for them."""
        index = now.phase.index
        if index not in self._made:
            step = make_study_step(setup, now, states, frozen)
            self._made[index] = step, make_study_eval(setup, now, states, frozen)
        return self._made[index]


class Stage:
    """A phase of a part under way: its leaves, its programs, and what each step is told."""

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
        self._rates = np.stack([one.rates for one in phases])  # [K, steps + 1, groups]
        self._multipliers = [one.table.multipliers() for one in phases]  # K x [leaves]
        self._decay = np.stack([one.table.weight_decays() for one in phases])  # [K, groups]

    def inputs(self, step: int) -> StepInputs:
        """Return the inputs of the members' optimizers at a step, `[K, ...]`."""
        paced = [
            own * one.phase.lr_scale_at(step)
            for own, one in zip(self._multipliers, self.phases, strict=True)
        ]
        return StepInputs(self._rates[:, step], np.stack(paced).astype(np.float32), self._decay)

    def is_over(self, step: int) -> bool:
        """Whether the step to come belongs to the next phase."""
        phase = self.now.phase
        return step == phase.stop and phase.index + 1 < len(self.setup.phases)

    def next(self, states: TrainState, programs: Programs) -> tuple[Stage, TrainState]:
        """The phase after this one, and the states as it begins."""
        phases = phases_of(self.setups, self.now.phase.index + 1)
        entered = enter_phase(self.setups, phases[0], states, self.frozen)
        kept = entered.trainable.keys() | entered.previously_trained.keys()
        frozen = {name: leaf for name, leaf in self.frozen.items() if name not in kept}
        return Stage(self.setups, phases, entered, frozen, programs), entered

    def score(self, states: TrainState, name: str = "eval") -> list[dict[str, float]]:
        """Each member's scores on the rows of a split."""
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
        """One member's scores; not finite where its outputs are not, of which no task has one."""
        if not all(np.isfinite(sums["loss"][0]) for sums, _ in results):
            return dict.fromkeys(self.setup.task.metrics, math.nan)
        return summarise(self.setup.bound, split, results).scores


def phases_of(setups: Sequence[Setup], index: int) -> tuple[PhaseSetup, ...]:
    """One phase of each member."""
    return tuple(phase_setup(setup, setup.phases[index]) for setup in setups)


def begin(
    setups: Sequence[Setup], phases: Sequence[PhaseSetup], programs: Programs
) -> tuple[Stage, TrainState, Start]:
    """The first phase of some members, their states, and what they start from.

    Args:
        setups: one a member.
        phases: the first of each.
        programs: of their bucket.
    """
    start = load_start(setups)
    states = initial_states(setups, phases[0], start)
    shared = frozen_params(setups[0], phases[0], start.params)
    frozen = {name: leaf for name, leaf in shared.items() if name not in states.previously_trained}
    return Stage(setups, phases, states, frozen, programs), states, start
