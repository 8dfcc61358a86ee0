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
    pulled,
    state_shardings,
)
from jaxft.engine.remat import with_remat
from jaxft.engine.setup import Build
from jaxft.engine.state import TrainState
from jaxft.engine.step import Rates, make_train_step
from jaxft.training.auto_freeze import looks_at
from jaxft.training.auto_rates import measures_rates, multipliers_now


@dataclass(frozen=True)
class Stage:
    """What runs a phase.

    Attributes:
        built: the run in this phase.
        frozen: the leaves that no phase has trained yet.
        step: the jitted train step.
        multipliers: see `Rates`; `replace` them where the loop decides on others.
        weight_decay: see `Rates`.
        start: what parameters that some phase pulls back began as.
    """

    built: Build
    frozen: dict[str, jax.Array]
    step: Callable
    multipliers: np.ndarray
    weight_decay: np.ndarray
    start: Mapping[str, jax.Array]

    def rates(self, step: int) -> Rates:
        """What the optimizer is told at a step."""
        multipliers = self.multipliers * self.built.phase.lr_scale_at(step)
        origin = {name: self.start[name] for name in pulled(self.built)}
        pull = np.float32(self.built.config.regularise.l2_sp) if origin else None
        return Rates(self.built.rates[step], multipliers, self.weight_decay, origin, pull)

    def looks_at(self, step: int) -> bool:
        """Whether the layers are looked at in the step that ends at `step`."""
        looks = self.built.length.looks_at(step) or looks_at(self.built, step)
        return looks or self.measures_at(step)

    def measures_at(self, step: int) -> bool:
        """Whether the multipliers are measured anew in the step that ends at `step`."""
        if not measures_rates(self.built) or step >= self.built.phase.stop:
            return False
        return step % self.built.length.rates_every == 0 or not self.multipliers.any()

    def fastest(self, step: int) -> dict[str, float]:
        """The rate of each training group's fastest leaf at a step."""
        told, table = self.rates(step), self.built.table
        rates = told.rates * table.fastest(told.multipliers)
        names = [group.name for group in table.training_groups]
        return {name: float(rate) for name, rate in zip(names, rates, strict=True)}

    def params(self, state: TrainState) -> dict[str, jax.Array]:
        """Every parameter, trained ones as their average where there is one."""
        return {**self.frozen, **state.settled, **(state.average or state.trainable)}

    def is_over(self, step: int) -> bool:
        """Whether the step to come belongs to the next phase."""
        phase = self.built.phase
        return step == phase.stop and phase.index + 1 < len(self.built.phases)


def make_stage(
    built: Build, params: dict[str, jax.Array], start: Mapping[str, jax.Array] | None = None
) -> Stage:
    """A phase with its leaves and its step.

    Args:
        built: the run in the phase.
        params: values of at least those leaves that no phase has trained yet.
        start: what parameters began as, from the phase before; None for `params`.
    """
    frozen = frozen_params(built, params)
    if start is None:
        later = {name for phase in built.phases for name in pulled(built.in_phase(phase.index))}
        start = {name: params[name].astype(np.float32) for name in later}
    step = make_step(built, frozen)
    return Stage(built, frozen, step, multipliers_now(built), built.table.weight_decays(), start)


def make_step(built: Build, frozen: Iterable[str]) -> Wrapped:
    """A phase's jitted train step.

    Args:
        built: the run in the phase.
        frozen: the names of the leaves that no phase has trained yet.
    """
    built = with_remat(built)
    return make_train_step(
        built.objective,
        built.optimizer,
        accumulate=built.config.train.accumulate,
        ema=built.config.train.ema,
        state_shardings=state_shardings(built),
        frozen_shardings={name: built.shardings[name] for name in frozen},
        mesh=built.mesh,
        pulled={name: built.shardings[name] for name in pulled(built)},
        grad_norms=True,
    )


def next_stage(stage: Stage, state: TrainState) -> tuple[Stage, TrainState]:
    """The phase after this one, and the state as it begins."""
    built = stage.built.in_phase(stage.built.phase.index + 1)
    return make_stage(built, stage.frozen, stage.start), enter_phase(built, state, stage.frozen)


Arrays = Mapping[str, jax.Array]


class Ahead:
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

    def step(self, stage: Stage, batch: Arrays) -> Callable:
        """The train step for a batch.

        Args:
            stage: the phase under way.
            batch: where it lies; if the next phase's batches have other shapes, nothing is won.
        """
        index = stage.built.phase.index
        if index != self._phase or self._step is None:
            ready = self._next is not None and self._shapes == _shapes(batch)
            self._step = self._next.result() if self._next is not None and ready else stage.step
            self._phase, self._next, self._calls = index, None, 0
        self._calls += 1
        # The first call may compile this phase's own step: two at once only slow each other.
        if self._calls == 2 and index + 1 < len(stage.built.phases):
            self._shapes = _shapes(batch)
            following = stage.built.in_phase(index + 1)
            frozen = {n: a for n, a in stage.frozen.items() if n in following.table.frozen}
            origin = {name: stage.start[name] for name in pulled(following)}
            known = (_shapes(frozen), self._shapes, _shapes(origin))
            self._next = self._pool.submit(compile_step, following, *known)
        return self._step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def compile_step(
    built: Build,
    frozen: Mapping[str, jax.ShapeDtypeStruct],
    batch: Mapping[str, jax.ShapeDtypeStruct],
    origin: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable:
    """A phase's step, compiled without a value.

    Args:
        built: the run in the phase.
        frozen, batch, origin: what its leaves, its batches and the values that its parameters
            are pulled back to are, and where they lie.
    """
    told = Rates(built.rates[0], built.table.multipliers(), built.table.weight_decays())
    if origin:
        told = replace(told, origin=origin, pull=np.float32(0))
    return make_step(built, frozen).lower(abstract_state(built), frozen, batch, told).compile()


def _shapes(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in arrays.items()
    }
