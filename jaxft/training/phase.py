"""One phase of a run: its compiled step and constant inputs, compiled ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import numpy as np
from jax.stages import Wrapped

from jaxft.engine.initial_state import (
    abstract_state,
    enter_phase,
    frozen_params,
    state_shardings,
)
from jaxft.engine.setup import PhaseSetup, Setup, objective_of
from jaxft.engine.state import TrainState
from jaxft.engine.step import Rates, make_train_step
from jaxft.training.auto_freeze import looks_at
from jaxft.training.auto_rates import measures_rates, multipliers_now


@dataclass(frozen=True)
class PhaseStep:
    """The compiled step and constant inputs of one phase.

    Attributes:
        setup: the run.
        phases: each of its phases.
        now: this one.
        frozen: the leaves that no phase has trained yet.
        step: the jitted train step.
        multipliers: see `Rates`; `replace` them where the loop decides on others.
        weight_decay: see `Rates`.
        start: what parameters that some phase pulls back began as.
    """

    setup: Setup
    phases: tuple[PhaseSetup, ...]
    now: PhaseSetup
    frozen: dict[str, jax.Array]
    step: Callable
    multipliers: np.ndarray
    weight_decay: np.ndarray
    start: Mapping[str, jax.Array]

    def rates(self, step: int) -> Rates:
        """What the optimizer is told at a step."""
        multipliers = self.multipliers * self.now.phase.lr_scale_at(step)
        origin = {name: self.start[name] for name in self.now.anchored}
        pull = np.float32(self.setup.config.regularise.l2_sp) if origin else None
        return Rates(self.now.rates[step], multipliers, self.weight_decay, origin, pull)

    def looks_at(self, step: int) -> bool:
        """Whether the layers are looked at in the step that ends at `step`."""
        looks = self.setup.length.looks_at(step) or looks_at(self.setup, step)
        return looks or self.measures_at(step)

    def measures_at(self, step: int) -> bool:
        """Whether the multipliers are measured anew in the step that ends at `step`."""
        if not measures_rates(self.setup.config) or step >= self.now.phase.stop:
            return False
        return step % self.setup.length.rates_every == 0 or not self.multipliers.any()

    def fastest(self, step: int) -> dict[str, float]:
        """The rate of each training group's fastest leaf at a step."""
        told, table = self.rates(step), self.now.table
        rates = told.rates * table.fastest(told.multipliers)
        names = [group.name for group in table.training_groups]
        return {name: float(rate) for name, rate in zip(names, rates, strict=True)}

    def params(self, state: TrainState) -> dict[str, jax.Array]:
        """Every parameter, trained ones as their average where there is one."""
        return {**self.frozen, **state.settled, **(state.average or state.trainable)}

    def is_over(self, step: int) -> bool:
        """Whether the step to come belongs to the next phase."""
        phase = self.now.phase
        return step == phase.stop and phase.index + 1 < len(self.phases)


def make_phase_step(
    setup: Setup,
    phases: tuple[PhaseSetup, ...],
    now: PhaseSetup,
    params: dict[str, jax.Array],
    start: Mapping[str, jax.Array] | None = None,
) -> PhaseStep:
    """A phase with its leaves and its step.

    Args:
        setup: the run.
        phases: each of its phases.
        now: the phase.
        params: values of at least those leaves that no phase has trained yet.
        start: what parameters began as, from the phase before; None for `params`.
    """
    frozen = frozen_params(setup, now, params)
    if start is None:
        later = {name for one in phases for name in one.anchored}
        start = {name: params[name].astype(np.float32) for name in later}
    step = make_step(setup, now, frozen)
    multipliers = multipliers_now(now.phase, measures_rates(setup.config))
    decay = now.table.weight_decays()
    return PhaseStep(setup, phases, now, frozen, step, multipliers, decay, start)


def make_step(setup: Setup, now: PhaseSetup, frozen: Iterable[str]) -> Wrapped:
    """A phase's jitted train step.

    Args:
        setup: the run.
        now: the phase.
        frozen: the names of the leaves that no phase has trained yet.
    """
    return make_train_step(
        objective_of(setup, now.compute),
        now.optimizer,
        accumulate=setup.config.train.accumulate,
        ema=setup.config.train.ema,
        state_shardings=state_shardings(setup, now),
        frozen_shardings={name: setup.shardings[name] for name in frozen},
        mesh=setup.mesh,
        pulled={name: setup.shardings[name] for name in now.anchored},
        grad_norms=True,
    )


def next_phase_step(stage: PhaseStep, state: TrainState) -> tuple[PhaseStep, TrainState]:
    """The phase after this one, and the state as it begins."""
    now = stage.phases[stage.now.phase.index + 1]
    entered = enter_phase(stage.setup, now, state, stage.frozen)
    return make_phase_step(stage.setup, stage.phases, now, stage.frozen, stage.start), entered


class Phases:
    """The phases of a run under way, each with its step, compiled ahead while the last one runs.

    Attributes:
        now: the phase under way; replaced where its rates or the phases to come are decided anew.
    """

    def __init__(self, now: PhaseStep):
        self.now = now
        self._precompiler = PhasePrecompiler()

    def step(self, batch: Arrays) -> Callable:
        """The compiled step `(state, frozen, batch, inputs) -> (state, metrics)` for a batch."""
        return self._precompiler.step(self.now, batch)

    def enter_next(self, state: TrainState) -> TrainState:
        """Go on in the next phase: the state as it begins."""
        self.now, state = next_phase_step(self.now, state)
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._precompiler.__exit__(*error)


Arrays = Mapping[str, jax.Array]


class PhasePrecompiler:
    """Gives each phase's step, and has that of the phase after it compiled meanwhile.

    Leaving the context waits for a compilation under way, which nothing can stop.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._phase: int | None = None
        self._step: Callable | None = None  # of that phase
        self._next: Future[Callable] | None = None
        self._shapes: Any = None  # of the batches that the next is for
        self._calls = 0

    def step(self, stage: PhaseStep, batch: Arrays) -> Callable:
        """The train step for a batch.

        Args:
            stage: the phase under way.
            batch: where it lies; if the next phase's batches have other shapes, nothing is won.
        """
        index = stage.now.phase.index
        if index != self._phase or self._step is None:
            ready = self._next is not None and self._shapes == _shapes(batch)
            self._step = self._next.result() if self._next is not None and ready else stage.step
            self._phase, self._next, self._calls = index, None, 0
        self._calls += 1
        # The first call may compile this phase's own step: two at once only slow each other.
        if self._calls == 2 and index + 1 < len(stage.phases):
            self._shapes = _shapes(batch)
            following = stage.phases[index + 1]
            frozen = {n: a for n, a in stage.frozen.items() if n in following.table.frozen}
            origin = {name: stage.start[name] for name in following.anchored}
            known = (_shapes(frozen), self._shapes, _shapes(origin))
            self._next = self._pool.submit(compile_step, stage.setup, following, *known)
        return self._step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def compile_step(
    setup: Setup,
    now: PhaseSetup,
    frozen: Mapping[str, jax.ShapeDtypeStruct],
    batch: Mapping[str, jax.ShapeDtypeStruct],
    origin: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable:
    """A phase's step, compiled without a value.

    Args:
        setup: the run.
        now: the phase.
        frozen, batch, origin: what its leaves, its batches and the values that its parameters
            are pulled back to are, and where they lie.
    """
    rates, state = abstract_rates(now, origin), abstract_state(setup, now)
    return make_step(setup, now, frozen).lower(state, frozen, batch, rates).compile()


def abstract_rates(now: PhaseSetup, origin: Mapping[str, jax.ShapeDtypeStruct]) -> Rates:
    """The inputs of a phase's steps, with the shapes of what L2-SP pulls back to."""
    rates = Rates(now.rates[0], now.table.multipliers(), now.table.weight_decays())
    return replace(rates, origin=dict(origin), pull=np.float32(0)) if origin else rates


def _shapes(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in arrays.items()
    }
