"""One phase of a run: its compiled step and constant inputs, compiled ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import numpy as np
from jax.stages import Wrapped

from jaxft.device.distributed import from_first
from jaxft.engine.initial_state import (
    abstract_state,
    enter_phase,
    frozen_params,
    state_shardings,
)
from jaxft.engine.setup import PhaseSetup, Setup, compared_of, objective_of
from jaxft.engine.state import TrainState
from jaxft.engine.step import StepInputs, make_train_step
from jaxft.report.events import EventLog
from jaxft.training.freezing.decisions import needs_layers_at
from jaxft.training.rates.auto_rgn import PRESET as AUTO_RGN
from jaxft.training.rates.heavy_tail import PRESET as HEAVY_TAIL
from jaxft.training.rates.multipliers import multipliers_now
from jaxft.training.sampling.moments import enter_period
from jaxft.training.sampling.program import Period, period_before


@dataclass(frozen=True)
class PhaseStep:
    """Compiled step and constant inputs of one phase.

    Attributes:
        setup: the run.
        phases: each of its phases.
        now: this phase.
        frozen: the leaves that no phase has trained yet.
        step: the jitted train step.
        multipliers: see `StepInputs`; `replace` them where the loop decides on others.
        anchors: initial values of all parameters that are under L2-SP in some phase.
        period: the blocks that train now, where they are sampled: the step is then their program's.
    """

    setup: Setup
    phases: tuple[PhaseSetup, ...]
    now: PhaseSetup
    frozen: dict[str, jax.Array]
    step: Callable
    multipliers: np.ndarray
    anchors: Mapping[str, jax.Array]
    period: Period | None = None

    def inputs(self, step: int) -> StepInputs:
        """Return the optimizer's inputs at a step."""
        inputs = self.now.inputs(step, self.multipliers)
        anchor = {name: self.anchors[name] for name in self.now.anchored}
        decay = np.float32(self.setup.config.regularise.l2_sp) if anchor else None
        return replace(inputs, anchor=anchor, anchor_decay=decay)

    def reads_layers_at(self, step: int) -> bool:
        """Return whether the layers are analyzed in the step that ends at `step`."""
        logged = self.setup.length.logs_layers_at(step) or needs_layers_at(self.setup, step)
        return logged or self.measures_at(step)

    def measures_at(self, step: int) -> bool:
        """Return whether Auto-RGN measures the multipliers in the step that ends at `step`."""
        if self.setup.config.layer_decay.preset != AUTO_RGN or step >= self.now.phase.stop:
            return False
        return step % self.setup.length.rates_every == 0 or not self.multipliers.any()

    def reads_spectra_before(self, step: int) -> bool:
        """Return whether spectra set the multipliers before the step that begins at `step`."""
        if self.setup.config.layer_decay.preset != HEAVY_TAIL:
            return False
        return step == self.now.phase.start or step % self.setup.length.rates_every == 0

    def samples_before(self, step: int) -> bool:
        """Return whether other blocks are to train from the step on that begins at `step`."""
        return self.period is not None and self.period.run.sampling.begins_at(step)

    @property
    def costed(self) -> PhaseSetup:
        """A phase whose step costs what this one's does; one for many choices of blocks."""
        return self.now if self.period is None else self.period.costed

    def fastest(self, step: int) -> dict[str, float]:
        """Return the rate of each training group's fastest leaf at a step."""
        inputs, table = self.inputs(step), self.now.table
        rates = inputs.rates * table.fastest(inputs.multipliers)
        names = [group.name for group in table.training_groups]
        return {name: float(rate) for name, rate in zip(names, rates, strict=True)}

    def params(self, state: TrainState) -> dict[str, jax.Array]:
        """Return every parameter, trained ones as their average if there is one."""
        return {**self.frozen, **state.previously_trained, **(state.average or state.trainable)}

    def is_over(self, step: int) -> bool:
        """Return whether the step to come belongs to the next phase."""
        return self.setup.is_over(self.now.phase, step)


def make_phase_step(
    setup: Setup,
    phases: tuple[PhaseSetup, ...],
    now: PhaseSetup,
    params: dict[str, jax.Array],
    anchors: Mapping[str, jax.Array] | None = None,
    period: Period | None = None,
) -> PhaseStep:
    """Make a phase's step and its constant inputs.

    Args:
        setup: the run.
        phases: each of its phases.
        now: the phase.
        params: values of at least those leaves that no phase has trained yet.
        anchors: those of the phase before; None takes them from `params`.
        period: the blocks that train now, where they are sampled.
    """
    frozen = frozen_params(setup, now, params)
    if anchors is None:
        anchored = {name for one in phases for name in one.anchored}
        anchors = {name: params[name].astype(np.float32) for name in anchored}
    if period is None:
        step = make_step(setup, now, frozen)
    else:
        step = make_step(period.run.setup, period.run.program, [*frozen, *period.run.orders])
    multipliers = multipliers_now(now.phase, setup.config.layer_decay.preset)
    return PhaseStep(setup, phases, now, frozen, step, multipliers, anchors, period)


def make_step(setup: Setup, now: PhaseSetup, frozen: Iterable[str]) -> Wrapped:
    """Make a phase's jitted train step.

    Args:
        setup: the run.
        now: the phase.
        frozen: the names of the leaves that no phase has trained yet.
    """
    return make_train_step(
        objective_of(setup, now.compute),
        now.optimizer,
        accumulate=setup.config.train.accumulate,
        grows=bool(setup.layout.growth),
        ema=setup.config.train.ema,
        state_shardings=state_shardings(setup, now),
        frozen_shardings={name: setup.argument_shardings[name] for name in frozen},
        mesh=setup.mesh,
        anchored={name: setup.shardings[name] for name in now.anchored},
        compared=compared_of(setup, now.compute),
        fused=now.fused,
        grad_norms=True,
    )


def next_phase_step(stage: PhaseStep, state: TrainState) -> tuple[PhaseStep, TrainState]:
    """Make the step of the next phase, and the state as that begins."""
    now = stage.phases[stage.now.phase.index + 1]
    entered = enter_phase(stage.setup, now, state, stage.frozen)
    return make_phase_step(stage.setup, stage.phases, now, stage.frozen, stage.anchors), entered


class Phases:
    """Phases of a run; the step of each is compiled while the previous one runs.

    Attributes:
        now: the current phase; replaced when its rates or later phases are decided during the run.
    """

    def __init__(self, now: PhaseStep):
        self.now = now
        self._precompiler = PhasePrecompiler()

    def step(self, batch: Arrays) -> Callable:
        """Return the compiled step `(state, frozen, batch, inputs) -> (state, metrics)`."""
        step = self._precompiler.step(self.now, batch)
        return step if self.now.period is None else self.now.period.bind(step)

    def sample(self, state: TrainState, step: int, log: EventLog) -> TrainState:
        """Let other blocks train from `step` on; return the state as that begins."""
        before = self.now.period
        assert before is not None  # a run that samples has one
        run = before.run
        # Only the first process has the log.
        scores = from_first(lambda: period_before(run, step + 1, log.read()).scores)
        now = Period(run, run.sampling.period(step), scores)
        multipliers = now.setup.table.multipliers()
        self.now = replace(self.now, now=now.setup, multipliers=multipliers, period=now)
        return enter_period(before, now, state)

    def enter_next(self, state: TrainState) -> TrainState:
        """Enter the next phase; return the state as it begins."""
        self.now, state = next_phase_step(self.now, state)
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._precompiler.__exit__(*error)


Arrays = Mapping[str, jax.Array]


class PhasePrecompiler:
    """Train steps of the phases, each compiled in a thread while the previous one runs.

    Leaving the context waits for a running compilation, which cannot be canceled.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._phase: int | None = None
        self._step: Callable | None = None  # of that phase
        self._next: Future[Callable] | None = None
        self._shapes: Any = None  # of the batches that the next is for
        self._calls = 0

    def step(self, stage: PhaseStep, batch: Arrays) -> Callable:
        """Return the train step for a batch.

        Args:
            stage: the current phase.
            batch: a batch, sharded; precompiling helps only if the next phase's have its shapes.
        """
        index = stage.now.phase.index
        if index != self._phase or self._step is None:
            ready = self._next is not None and self._shapes == _shapes(batch)
            self._step = self._next.result() if self._next is not None and ready else stage.step
            self._phase, self._next, self._calls = index, None, 0
        self._calls += 1
        # The first call may compile this phase's step: two compilations at once slow each other.
        if self._calls == 2 and index + 1 < len(stage.phases):
            self._shapes = _shapes(batch)
            following = stage.phases[index + 1]
            frozen = {n: a for n, a in stage.frozen.items() if n in following.table.frozen}
            anchor = {name: stage.anchors[name] for name in following.anchored}
            shapes = (_shapes(frozen), self._shapes, _shapes(anchor))
            self._next = self._pool.submit(compile_step, stage.setup, following, *shapes)
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
    anchor: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable:
    """Compile a phase's step from shapes alone.

    Args:
        setup: the run.
        now: the phase.
        frozen, batch, anchor: shapes, dtypes and shardings of its frozen leaves, its batches and
            the anchor of L2-SP.
    """
    inputs, state = abstract_inputs(now, anchor), abstract_state(setup, now)
    return make_step(setup, now, frozen).lower(state, frozen, batch, inputs).compile()


def abstract_inputs(now: PhaseSetup, anchor: Mapping[str, jax.ShapeDtypeStruct]) -> StepInputs:
    """Make inputs of a phase's step with the shapes of its anchor, to trace or compile it."""
    inputs = now.inputs(now.phase.start, now.table.multipliers())
    return replace(inputs, anchor=dict(anchor), anchor_decay=np.float32(0)) if anchor else inputs


def _shapes(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in arrays.items()
    }
