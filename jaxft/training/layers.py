"""Readings of the layers during training, for the event log and for measured rates."""

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
from jaxft.models.adapters.low_rank import is_adapter
from jaxft.models.load import Model
from jaxft.models.values import read_value
from jaxft.report.events import EventLog
from jaxft.training.freezing.decisions import KIND as FREEZE
from jaxft.training.freezing.decisions import decide, freeze
from jaxft.training.freezing.grades import NORMS, map_norms
from jaxft.training.phase import PhaseStep
from jaxft.training.rates.auto_rgn import measured_multipliers
from jaxft.training.rates.heavy_tail import heavy_tail_multipliers, matrices_of, measured_exponents
from jaxft.training.rates.multipliers import KIND, multipliers_now


@dataclass(frozen=True)
class LayerReadings:
    """Readings of a step's layers, on the device until `read`.

    Attributes:
        norms: `[leaves]` gradient norms.
        sums: `[leaves, columns]`, see `diagnostics`; None in steps that are not analyzed.
    """

    norms: jax.Array
    sums: jax.Array | None

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Fetch both to the host; NaN in place of sums that are None."""
        norms = np.asarray(jax.device_get(self.norms))
        if self.sums is None:
            return norms, np.full((len(norms), len(COLUMNS)), np.nan)
        return norms, np.asarray(jax.device_get(self.sums))


def read_layers(
    stage: PhaseStep, state: TrainState, step: int, metrics: dict[str, Any]
) -> LayerReadings:
    """Take the leaves' gradient norms out of a step's metrics, and analyze the step if due.

    Args:
        stage: the phase of the step.
        state: the state after the step.
        step: steps done, this one included.
        metrics: of the step; the norms of the leaves are removed.
    """
    norms, setup = metrics.pop("grad_norms"), stage.setup
    if not stage.reads_layers_at(step):
        return LayerReadings(norms, None)
    inputs, adam = stage.inputs(step - 1), setup.config.optimizer.adam
    return LayerReadings(norms, look(state, inputs, stage.now.table, adam, setup.mesh))


def write_layers(
    log: EventLog, stage: PhaseStep, step: int, readings: LayerReadings, norm: float
) -> None:
    """Write a step's values of each layer to the event log.

    Args:
        log: the event log.
        stage: the phase of the step.
        step: steps done, this one included.
        readings: of the step.
        norm: of the whole gradient.
    """
    table, inputs = stage.now.table, stage.inputs(step - 1)
    leaves = [leaf for leaf in table.leaves if leaf.trainable]
    groups = [group.name for group in table.training_groups]
    rates = inputs.rates[[groups.index(leaf.group) for leaf in leaves]] * inputs.multipliers
    clip = stage.setup.config.optimizer.clip
    whole = {} if clip is None or not norm else {"clip": min(1.0, clip / norm)}
    log.of_kind(
        "layers", step, whole | layer_values(*readings.read(), leaves, _layers(stage), rates)
    )


def write_map_norms(log: EventLog, stage: PhaseStep, step: int, readings: LayerReadings) -> None:
    """Write the norm of the gradient of each linear map of the blocks that trains."""
    norms = np.asarray(jax.device_get(readings.norms))
    log.of_kind(NORMS, step, {"norms": map_norms(stage.now.table, norms)})


def write_drift(
    log: EventLog, stage: PhaseStep, state: TrainState, step: int, initial: Model
) -> None:
    """Write the distance of each trained layer from its initial value.

    Initial values are read from the checkpoint again, one parameter at a time, into their shards:
    a pass over a file at each evaluation, instead of the memory for a second copy of all
    parameters throughout the run.

    Args:
        log: the event log.
        stage: the current phase.
        state: the state.
        step: steps done.
        initial: the initial model, without its values.
    """
    setup, now, of = stage.setup, stage.params(state), layers_of(stage.setup.model)
    seed = setup.config.run.seed.init
    # What is computed from other parameters cannot be read alone.
    names = [
        n for n in (*state.trainable, *state.previously_trained) if not _is_computed(n, initial)
    ]

    def squared_distances(name: str) -> jax.Array:
        start = read_value(initial, name, setup.shardings[name], seed=seed)
        return in_turn(setup.mesh, distances(now[name], start))

    squares = [squared_distances(name) for name in names]
    moved = layer_drift(np.asarray(jax.device_get(squares)), [of[name] for name in names])
    log.of_kind("drift", step, {"drift": moved})


def _is_computed(name: str, initial: Model) -> bool:
    """Return whether a parameter's initial value depends on others': a new adapter's."""
    if name in initial.matching.loaded or not is_adapter(name) or initial.adapted is None:
        return False
    owner, _, leaf = name.rpartition("/")
    if leaf in ("lora_a", "lora_b"):
        return initial.adapted.kernels[f"{owner}/kernel"].principal
    return True


def measure_again(stage: PhaseStep, log: EventLog, step: int, readings: LayerReadings) -> PhaseStep:
    """Return the phase with multipliers measured in a step, which are logged."""
    multipliers = measured_multipliers(stage.now.table, *readings.read(), _layers(stage))
    return _with_multipliers(stage, log, step, multipliers)


def read_spectra(stage: PhaseStep, state: TrainState, log: EventLog, step: int) -> PhaseStep:
    """Return the phase with multipliers from the spectra of its weights, which are logged.

    Args:
        stage: the current phase.
        state: before the step.
        log: the event log.
        step: steps done.
    """
    table = stage.now.table
    matrices = {name: state.trainable[name] for name in matrices_of(table)}
    exponents = measured_exponents(stage.setup.mesh, matrices)
    return _with_multipliers(stage, log, step, heavy_tail_multipliers(table, exponents))


def _with_multipliers(
    stage: PhaseStep, log: EventLog, step: int, multipliers: np.ndarray
) -> PhaseStep:
    named = zip(stage.now.table.trainable, map(float, multipliers), strict=True)
    log.of_kind(KIND, step, {"multipliers": dict(named)})
    return replace(stage, multipliers=multipliers)


def with_measured(stage: PhaseStep, events: Iterable[Mapping[str, Any]]) -> PhaseStep:
    """Return the phase with the last logged multipliers, if it measures them."""
    return replace(
        stage,
        multipliers=multipliers_now(stage.now.phase, stage.setup.config.layer_decay.preset, events),
    )


def decide_again(stage: PhaseStep, log: EventLog, step: int) -> PhaseStep:
    """Return the phase under a new decision on what stops training, which is logged.

    Args:
        stage: the current phase.
        log: the event log, which only the first process has.
        step: steps done.
    """
    decision = from_first(lambda: decide(stage.setup, stage.now.table, log.read(), step))
    setup = freeze(stage.setup, step, decision)
    if setup is stage.setup:
        return stage
    log.of_kind(FREEZE, step, decision)
    phases = phase_setups(setup)
    return replace(stage, setup=setup, phases=phases, now=phases[stage.now.phase.index])


def _layers(stage: PhaseStep) -> list[str]:
    of = layers_of(stage.setup.model)
    return [of[name] for name in stage.now.table.trainable]
