"""What the layers did in the steps that were looked at: into the diary, and into measured rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxft.analysis.diagnostics import (
    COLUMNS,
    distances,
    layer_drift,
    layer_values,
    layers_of,
    look,
)
from jaxft.device.distributed import from_first
from jaxft.device.mesh import in_turn
from jaxft.engine.remat import phase_setups
from jaxft.engine.state import TrainState
from jaxft.models.load import Model
from jaxft.models.values import read_value
from jaxft.report.events import EventLog
from jaxft.training.auto_freeze import KIND as FREEZE
from jaxft.training.auto_freeze import decide, freeze_below
from jaxft.training.auto_rates import (
    KIND,
    measured_multipliers,
    measures_rates,
    multipliers_now,
)
from jaxft.training.phase import PhaseStep


@dataclass(frozen=True)
class Seen:
    """What a step showed of its layers; still on the device until it is read.

    Attributes:
        norms: `[leaves]` gradient norms.
        sums: `[leaves, columns]`, see `diagnostics`; None where the step was not looked at.
    """

    norms: jax.Array
    sums: jax.Array | None

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Both on the host; not a number where there is nothing."""
        norms = np.asarray(jax.device_get(self.norms))
        if self.sums is None:
            return norms, np.full((len(norms), len(COLUMNS)), np.nan)
        return norms, np.asarray(jax.device_get(self.sums))


def see_layers(stage: PhaseStep, state: TrainState, step: int, metrics: dict[str, Any]) -> Seen:
    """Take out of a step's metrics what is of each leaf, and look at the rest where it is due.

    Args:
        stage: the phase that the step was in.
        state: as the step left it.
        step: steps done, this one included.
        metrics: as the step gave them; the norms of the leaves are taken out.
    """
    norms, setup = metrics.pop("grad_norms"), stage.setup
    if not stage.looks_at(step):
        return Seen(norms, None)
    inputs, adam = stage.inputs(step - 1), setup.config.optimizer.adam
    return Seen(norms, look(state, inputs, stage.now.table, adam, setup.mesh))


def write_layers(log: EventLog, stage: PhaseStep, step: int, seen: Seen, norm: float) -> None:
    """Write what each layer did in a step.

    Args:
        log: the run's diary.
        stage: the phase that the step was in.
        step: steps done, this one included.
        seen: what it showed.
        norm: of the whole gradient.
    """
    table, inputs = stage.now.table, stage.inputs(step - 1)
    leaves = [leaf for leaf in table.leaves if leaf.trainable]
    groups = [group.name for group in table.training_groups]
    rates = inputs.rates[[groups.index(leaf.group) for leaf in leaves]] * inputs.multipliers
    clip = stage.setup.config.optimizer.clip
    whole = {} if clip is None or not norm else {"clip": min(1.0, clip / norm)}
    log.of_kind("layers", step, whole | layer_values(*seen.read(), leaves, _layers(stage), rates))


def write_drift(
    log: EventLog, stage: PhaseStep, state: TrainState, step: int, origin: Model
) -> None:
    """Write how far each layer that has trained is from where it began.

    The start is read again from the checkpoint, a parameter at a time into its own shards. It
    costs a pass over a file beside an evaluation, where a copy kept would cost as much memory as
    the parameters, for the whole run.

    Args:
        log: the run's diary.
        stage: the phase under way.
        state: the state.
        step: steps done.
        origin: the model that the run began with; its values are not looked at.
    """
    setup, now, of = stage.setup, stage.params(state), layers_of(stage.setup.model)
    seed = setup.config.run.seed.init
    # A new DoRA magnitude is computed from other parameters: read alone, it is not its start.
    names = [
        n for n in (*state.trainable, *state.previously_trained) if not _is_new_length(n, origin)
    ]

    def way(name: str) -> jax.Array:
        start = read_value(origin, name, setup.shardings[name], seed=seed)
        return in_turn(setup.mesh, distances(now[name], start))

    found = [way(name) for name in names]
    moved = layer_drift(np.asarray(jax.device_get(found)), [of[name] for name in names])
    log.of_kind("drift", step, {"drift": moved})


def _is_new_length(name: str, origin: Model) -> bool:
    return name.endswith("/magnitude") and name not in origin.matching.loaded


def measure_again(stage: PhaseStep, log: EventLog, step: int, seen: Seen) -> PhaseStep:
    """The phase with the multipliers that follow from a step; the decision goes into the diary."""
    multipliers = measured_multipliers(stage.now.table, *seen.read(), _layers(stage))
    named = zip(stage.now.table.trainable, map(float, multipliers), strict=True)
    log.of_kind(KIND, step, {"multipliers": dict(named)})
    return replace(stage, multipliers=multipliers)


def with_measured(stage: PhaseStep, events: Iterable[Mapping[str, Any]]) -> PhaseStep:
    """The phase with the multipliers that the diary holds, where they are measured."""
    return replace(
        stage,
        multipliers=multipliers_now(stage.now.phase, measures_rates(stage.setup.config), events),
    )


def decide_again(stage: PhaseStep, log: EventLog, step: int) -> PhaseStep:
    """The phase with a further one after `step`, where the layers below some depth stop.

    Args:
        stage: the phase under way.
        log: the run's diary, which the first process alone has.
        step: steps done.
    """
    depth = from_first(lambda: decide(stage.setup, stage.now.table, log.read(), step))
    setup = freeze_below(stage.setup, step, depth)
    if setup is stage.setup:
        return stage
    log.of_kind(FREEZE, step, {"depth": depth})
    phases = phase_setups(setup)
    return replace(stage, setup=setup, phases=phases, now=phases[stage.now.phase.index])


def _layers(stage: PhaseStep) -> list[str]:
    of = layers_of(stage.setup.model)
    return [of[name] for name in stage.now.table.trainable]
