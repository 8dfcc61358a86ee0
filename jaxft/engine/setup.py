"""From a config to everything a story needs, once for all of them.

`build` reads no weights: whatever can be wrong with a config, a data set or a checkpoint's shape
is found before anything large is read and before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import jax
import numpy as np
import optax

from jaxft.config.load import Config
from jaxft.config.optimizer import SCHEDULE_FREE
from jaxft.data.batching.plans import Layout, TrainPlan, plan_rows
from jaxft.device.mesh import param_shardings, row_divisor
from jaxft.engine.compute import (
    asked_adapter,
    build_mesh,
    check_dropout,
    make_compute,
    objective,
)
from jaxft.engine.inputs import Split, data_cache, open_sources, open_splits, with_images
from jaxft.engine.length import Length, resolve_length, resolve_rates
from jaxft.engine.mixture import make_mixture
from jaxft.engine.recipe import make_table, optimizer_from, phases_from
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
from jaxft.layerwise.table import LayerTable
from jaxft.models.load import Model, describe
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.contract import Task, Tools


@dataclass(frozen=True)
class Build:
    """A run that has everything but its weights.

    Attributes:
        config: the whole config.
        task: what is learned.
        model: the model, with shapes for parameters.
        splits: train, eval and perhaps test, as the task reads them.
        label_names: the classes, in order of class id.
        layout: rows, row length and segments of a batch.
        plan: which examples make each training batch.
        mesh, shardings: the devices, and where each parameter lies on them.
        compute: how the model runs.
        length: the run's durations in steps.
        phases: the stretches of the run; one where the config has none.
        phase: the one that all of the following are of.
        optimizer: the optimizer of the phase's table.
        rates: `[steps + 1, groups]`, every training group's rate at every step of the phase.
        why: why what the config leaves to us is as it is, a line each.
    """

    config: Config
    task: Task
    model: Model
    splits: Mapping[str, Split]
    label_names: tuple[str, ...]
    layout: Layout
    plan: TrainPlan
    mesh: jax.sharding.Mesh
    shardings: Mapping[str, jax.sharding.NamedSharding]
    length: Length
    phases: tuple[Phase, ...]
    phase: Phase
    compute: Compute
    optimizer: optax.GradientTransformationExtraArgs
    rates: np.ndarray
    why: tuple[str, ...] = ()

    @property
    def table(self) -> LayerTable:
        """What each parameter's group and rate are in this phase."""
        return self.phase.table

    @property
    def schedule_free(self) -> bool:
        """Whether a rule of the run keeps an average of its own."""
        return any(group.algorithm == SCHEDULE_FREE for group in self.table.groups)

    @property
    def averages(self) -> bool:
        """Whether something else is scored than the parameters as they are."""
        return self.config.train.ema is not None or self.schedule_free

    def in_phase(self, index: int) -> Build:
        """The same run in another of its phases."""
        phase = self.phases[index]
        return replace(
            self,
            phase=phase,
            compute=replace(self.compute, trainable=frozenset(phase.table.trainable)),
            optimizer=optimizer_from(phase.table, self.config.optimizer),
            rates=resolve_rates(phase, self.length),
        )

    def after(self, step: int) -> Build:
        """The same run in the phase that took the step before `step`: whose state was saved."""
        return self.in_phase(
            next((p.index for p in self.phases if step <= p.stop), len(self.phases) - 1)
        )

    def under(self, config: Config) -> Build:
        """The same run, at its first phase, under a config that differs in rates and seeds only."""
        phases = phases_from(config, self.model, *_steps(self.length))
        return replace(self, config=config, phases=phases).in_phase(0)

    def objective(self, params, batch, key):
        """The task's loss and metrics of one batch, as sums and weights."""
        return objective(self.task, self.outputs, params, batch, key)

    def outputs(self, params, batch, key=None):
        """What the model makes of a batch, also of one that brings its trunk's output."""
        return self.model.apply(params, self.whole(batch), key, self.compute)

    def whole(self, batch):
        """A batch with all that the model's stems read."""
        return with_images(batch, self.splits["train"].examples.image_size)


def build(
    config: Config,
    *,
    devices: Sequence | None = None,
    layout: Layout | None = None,
    new: Sequence[str] = (),
    weights: bool = True,
) -> Build:
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
    model = describe(config.model.checkpoint, weights=weights, **model_options(config, names, new))
    check_dropout(config, model)
    mesh, why = build_mesh(config, model, _ever_trained(config, model), devices)
    tools = Tools(model, config.data.max_length, data_cache(config.data.cache))
    splits = open_splits(task, sources, names, tools, config.data.on_bad_row)
    mixture = make_mixture(config, splits["train"], names)
    lengths = splits["train"].examples.lengths if mixture is None else mixture.lengths
    layout = _lay_out(config, task, mesh, lengths, layout)
    plan = TrainPlan(lengths, config.run.seed.data, *layout.shape, mixture)
    length = resolve_length(config, plan)
    phase, *_ = phases = phases_from(config, model, *_steps(length))
    return Build(
        config=config,
        task=task,
        model=model,
        splits=splits,
        label_names=names,
        layout=layout,
        plan=plan,
        mesh=mesh,
        shardings=param_shardings(_shapes(model), model.axes, mesh),
        length=length,
        phases=phases,
        phase=phase,
        compute=make_compute(config, mesh, model.num_depths - 2, phase.table),
        optimizer=optimizer_from(phase.table, config.optimizer),
        rates=resolve_rates(phase, length),
        why=(why,) if why else (),
    )


def _ever_trained(config: Config, model: Model) -> set[str]:
    """The parameters that may train: a later phase may train what the first does not."""
    return set(model.leaves if config.phases else make_table(config, model).trainable)


def _steps(length: Length) -> tuple[int, int]:
    return length.total_steps, length.steps_per_epoch


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: leaf.shape for name, leaf in model.params.items()}


def make_task(config: Config) -> Task:
    """The task that `task.kind` names: the folder of that name in `tasks/`."""
    return import_module(f"jaxft.tasks.{config.task.kind}.task").make(config.task)


def model_options(config: Config, names: Sequence[str], new: Sequence[str] = ()) -> dict[str, Any]:
    """How the config asks for its checkpoint to be described or loaded.

    Args:
        config: the run.
        names: the classes.
        new: parameters that were new when the run began.
    """
    return {
        "task": config.task.kind,
        "labels": names or None,
        "dropout": config.model.dropout,
        "ignore": config.model.ignore,
        "resize_vocab": config.model.resize_vocab,
        "reinit": config.model.reinit,
        "image_size": config.model.image_size,
        "detection_tokens": config.model.detection_tokens,
        "adapter": asked_adapter(config.adapter),
        "new": new,
        "cache": config.model.cache,
    }


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
