"""From a config to everything a story needs, once for all of them: `Setup` and `PhaseSetup`.

`build` reads no weights: whatever can be wrong with a config, a data set or a checkpoint's shape
is found before anything large is read and before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import jax
import numpy as np
import optax

from jaxft.config.load import Config
from jaxft.config.optimizer import SCHEDULE_FREE
from jaxft.data.batching.plans import Layout, TrainPlan, plan_rows
from jaxft.device.mesh import row_divisor
from jaxft.engine.compute import (
    asked_adapter,
    make_runtime,
)
from jaxft.engine.inputs import Split, data_cache, open_sources, open_splits, with_inputs
from jaxft.engine.length import Length, resolve_length, resolve_rates
from jaxft.engine.mixture import make_mixture
from jaxft.engine.recipe import make_table, optimizer_from, phases_from
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
from jaxft.layerwise.table import LayerTable
from jaxft.models.load import HEADLESS, LoadOptions, Model, describe
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.contract import BoundTask, Sums, Task
from jaxft.tasks.parts.tools import Tools


@dataclass(frozen=True)
class Setup:
    """A run that has everything but its weights.

    Attributes:
        config: the whole config.
        task: what is learned.
        bound: the task on the model and the classes.
        model: the model, with shapes for parameters.
        splits: train, eval and perhaps test, as the task reads them.
        label_names: the classes, in order of class id.
        layout: rows, row length and segments of a batch.
        plan: which examples make each training batch.
        mesh, shardings: the devices, and where each parameter lies on them.
        compute: how the model runs outside a train step: as the first phase has it, and with
            nothing computed again.
        length: the run's durations in steps.
        phases: the stretches of the run; one where the config has none.
        why: why what the config leaves to us is as it is, a line each.
    """

    config: Config
    task: Task
    bound: BoundTask[Any, Any]
    model: Model
    splits: Mapping[str, Split]
    label_names: tuple[str, ...]
    layout: Layout
    plan: TrainPlan
    mesh: jax.sharding.Mesh
    shardings: Mapping[str, jax.sharding.NamedSharding]
    compute: Compute
    length: Length
    phases: tuple[Phase, ...]
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseSetup:
    """One phase of a run, with all that its train step is made of.

    Attributes:
        phase: its steps, and the LayerTable that says what trains.
        compute: how the model runs in its steps.
        optimizer: the optimizer of the table.
        rates: `[steps + 1, groups]`, every training group's rate at every step of the run.
        schedule_free: whether a rule keeps an average of its own.
        averages: whether something else is scored than the parameters as they are.
        anchored: the parameters under L2-SP: those that train and were not new.
        why: why `compute.remat` is what it is, where the config leaves it to us.
    """

    phase: Phase
    compute: Compute
    optimizer: optax.GradientTransformationExtraArgs
    rates: np.ndarray
    schedule_free: bool
    averages: bool
    anchored: tuple[str, ...]
    why: str = ""

    @property
    def table(self) -> LayerTable:
        """Each parameter's group, depth and multiplier in this phase."""
        return self.phase.table


def phase_setup(setup: Setup, phase: Phase) -> PhaseSetup:
    """A phase of a run; `train.remat: auto` is decided by `remat.phase_setups`.

    Args:
        setup: the run.
        phase: one of its phases.
    """
    config, table = setup.config, phase.table
    schedule_free = any(group.algorithm == SCHEDULE_FREE for group in table.groups)
    new = set(setup.model.report.new)
    return PhaseSetup(
        phase=phase,
        compute=replace(setup.compute, trainable=frozenset(table.trainable)),
        optimizer=optimizer_from(table, config.optimizer),
        rates=resolve_rates(phase, setup.length),
        schedule_free=schedule_free,
        averages=config.train.ema is not None or schedule_free,
        anchored=tuple(name for name in table.trainable if name not in new)
        if config.regularise.l2_sp
        else (),
    )


def with_config(setup: Setup, config: Config) -> Setup:
    """The same run under a config that differs in rates and seeds only."""
    table = make_table(config, setup.model)
    phases = phases_from(config, setup.model, table, *_steps(setup.length))
    return replace(setup, config=config, phases=phases)


Outputs = Callable[..., dict[str, jax.Array]]


def outputs_of(setup: Setup, compute: Compute) -> Outputs:
    """The forward pass `(params, batch, key=None) -> outputs`.

    Args:
        setup: the run.
        compute: how its model runs; a batch may bring its trunk's output.
    """
    inputs = setup.splits["train"].examples.inputs

    def outputs(params: Any, batch: Any, key: jax.Array | None = None) -> dict[str, jax.Array]:
        return setup.model.apply(params, with_inputs(batch, inputs), key, compute)

    return outputs


def objective_of(setup: Setup, compute: Compute) -> Callable[..., Sums]:
    """The task's loss and metrics `(params, batch, key) -> sums and weights`."""
    return partial(setup.bound.objective, outputs_of(setup, compute))


def build(
    config: Config,
    *,
    devices: Sequence | None = None,
    layout: Layout | None = None,
    new: Sequence[str] = (),
    weights: bool = True,
) -> Setup:
    """Open the data, describe the model, lay out the mesh and resolve durations.

    Args:
        config: the whole config.
        devices: the devices to run on; all that jax sees when None.
        layout: the batches of the run that is resumed; None lays them out anew.
        new: the parameters that were new when it began.
        weights: whether the checkpoint's are there; else its config is enough.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint.
    """
    task = make_task(config)
    sources = open_sources(task, config.data.specs, config.data.where, config.run.seed.data)
    names = task.label_names(sources["train"])
    model = describe(config.model.checkpoint, model_options(config, names, new), weights=weights)
    runtime = make_runtime(config, model, table := make_table(config, model), devices)
    bound = bind_task(task, config, model, names, weights)
    splits = open_splits(bound, sources, config.data.on_bad_row)
    mixture = make_mixture(config, task, splits["train"], names)
    lengths = splits["train"].examples.lengths if mixture is None else mixture.lengths
    layout = _lay_out(config, task, runtime.mesh, lengths, layout)
    plan = TrainPlan(lengths, config.run.seed.data, *layout.shape, mixture)
    length = resolve_length(config, plan)
    phases = phases_from(config, model, table, *_steps(length))
    first = frozenset(phases[0].table.trainable)
    return Setup(
        config=config,
        task=task,
        bound=bound,
        model=model,
        splits=splits,
        label_names=names,
        layout=layout,
        plan=plan,
        mesh=runtime.mesh,
        shardings=runtime.shardings,
        compute=replace(runtime.compute, trainable=first),
        length=length,
        phases=phases,
        why=(runtime.why,) if runtime.why else (),
    )


def _steps(length: Length) -> tuple[int, int]:
    return length.total_steps, length.steps_per_epoch


def make_task(config: Config) -> Task:
    """The task that `task.kind` names: the folder of that name in `tasks/`."""
    return import_module(f"jaxft.tasks.{config.task.kind}.task").make(config.task)


def bind_task(
    task: Task, config: Config, model: Model, names: Sequence[str], weights: bool
) -> BoundTask[Any, Any]:
    """The task on a model, its examples read within the config's length and kept in its cache."""
    tools = Tools(model, config.data.max_length, data_cache(config.data.cache), weights)
    return task.bind(tools, names)


def model_options(config: Config, names: Sequence[str], new: Sequence[str] = ()) -> LoadOptions:
    """How the config asks for its checkpoint to be described or loaded.

    Args:
        config: the run.
        names: the classes.
        new: parameters that were new when the run began.
    """
    return LoadOptions(
        task=make_task(config).head or HEADLESS,
        labels=names or None,
        dropout=config.model.dropout,
        ignore=config.model.ignore,
        resize_vocab=config.model.resize_vocab,
        reinit=config.model.reinit,
        image_size=config.model.image_size,
        detection_tokens=config.model.detection_tokens,
        adapter=asked_adapter(config.adapter),
        new=new,
        cache=config.model.cache,
    )


def _lay_out(
    config: Config, task: Task, mesh: jax.sharding.Mesh, lengths: np.ndarray, given: Layout | None
) -> Layout:
    """The shape of the batches: that of the run that is resumed, where the mesh divides it."""
    if given is not None:
        _check_rows(given, mesh, config.train.accumulate)
        return given
    if config.data.pack is True and not task.packs:
        raise UserError(f"data.pack: the task '{task.kind}' reads one example a row.")
    packs = task.packs if config.data.pack == "auto" else config.data.pack
    divisor = row_divisor(mesh, config.train.accumulate)
    # Where an example is a row, whatever its arrays are, a row is one position.
    row_length = 1 if lengths.max() == 1 else config.data.row_length
    return plan_rows(lengths, config.data.batch_size, row_length, packs, divisor)


def _check_rows(layout: Layout, mesh: jax.sharding.Mesh, accumulate: int) -> None:
    """A resumed run keeps its batches, so the new mesh has to divide them."""
    divisor = row_divisor(mesh, accumulate)
    if layout.rows % divisor:
        raise UserError(
            f"mesh: this run's batches have {layout.rows} rows, which data x fsdp x "
            f"train.accumulate = {divisor} does not divide.",
            "Resume with sizes that do; another batch would be another run.",
        )
