"""A phase under way: its leaves in place, its step, and what the step is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax.stages import Wrapped

from jaxft.engine.initial_state import enter_phase, frozen_params, pulled, state_shardings
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
        multipliers = self.multipliers * self.built.phase.pace(step)
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
