"""Setup of a run from its config, shared by training, studies, plans and inference.

`build` reads no weights: an error in the config, the data set or the checkpoint's shapes is
reported before anything large is read and before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from jaxft.config.load import Config
from jaxft.config.optimizer import SCHEDULE_FREE
from jaxft.data.batching.plans import Layout, TrainPlan, plan_rows
from jaxft.device.mesh import check_batches, position_divisor, row_divisor
from jaxft.durations import Pace
from jaxft.engine.compute import make_runtime
from jaxft.engine.gradients.compared import Compared
from jaxft.engine.gradients.fused import Fused, fused_optimizer
from jaxft.engine.inputs import Split, data_cache, fit_task, open_sources, open_splits, with_inputs
from jaxft.engine.length import Length, check_growth, resolve_length, resolve_rates, with_growth
from jaxft.engine.memory.storage import argument_shardings, quantized_leaves
from jaxft.engine.mixture import make_mixture
from jaxft.engine.recipe import (
    make_table,
    make_task,
    model_options,
    optimizer_from,
    phases_from,
)
from jaxft.engine.step import StepInputs
from jaxft.errors import UserError
from jaxft.layerwise.phases import Phase
from jaxft.layerwise.table import LayerTable
from jaxft.models.load import Model, describe
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.contract import BoundTask, Facts, Sums, Task
from jaxft.tasks.parts.tools import Tools


@dataclass(frozen=True, eq=False)
class Setup:
    """Setup of a run: everything but its weights.

    Attributes:
        config: the whole config.
        task: what is learned.
        bound: the task on the model and the classes.
        model: the model, with shapes for parameters.
        splits: train, eval and optionally test, read by the task.
        label_names: the classes, in order of class id.
        layout: rows, row length and segments of a batch.
        plan: which examples make each training batch.
        mesh, shardings: the devices, and the sharding of each parameter.
        compute: the model's compute settings outside a train step: those of the first phase,
            without rematerialization.
        length: the run's durations in steps.
        phases: in order; one where the config has none.
        why: reasons for the settings that the config leaves open, one line each.
        quantized: the frozen parameters that are stored quantized -> nf4 or int8.
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
    quantized: Mapping[str, str] = field(default_factory=dict)

    @property
    def argument_shardings(self) -> dict[str, jax.sharding.NamedSharding | None]:
        """Shardings of the parameters as a jitted function's arguments."""
        return argument_shardings(self.shardings, self.quantized)

    def is_over(self, phase: Phase, step: int) -> bool:
        """Return whether step `step` belongs to the phase after this one."""
        return step == phase.stop and phase.index + 1 < len(self.phases)


@dataclass(frozen=True)
class PhaseSetup:
    """Setup of one phase: everything that its train step is made of.

    Attributes:
        phase: its steps and its LayerTable.
        compute: the model's compute settings in its steps.
        optimizer: the optimizer of the table.
        rates: `[steps + 1, groups]`, every training group's rate at every step of the run.
        schedule_free: whether one of the optimizer's rules is schedule-free.
        averages: whether an average of the parameters is scored in their place.
        anchored: the parameters under L2-SP: those that train and are pretrained.
        fused: the optimizer as part of the backward pass; None where it follows that.
        why: the reason for `compute.remat`, where the config leaves it open.
    """

    phase: Phase
    compute: Compute
    optimizer: optax.GradientTransformationExtraArgs
    rates: np.ndarray
    schedule_free: bool
    averages: bool
    anchored: tuple[str, ...]
    fused: Fused | None = None
    why: str = ""

    @property
    def table(self) -> LayerTable:
        """Group, depth and multiplier of each parameter in this phase."""
        return self.phase.table

    def inputs(self, step: int, multipliers: np.ndarray) -> StepInputs:
        """Return the optimizer's inputs at a step, without an anchor.

        Args:
            step: steps done before it.
            multipliers: `[leaves]` float32.
        """
        scaled = multipliers * self.phase.lr_scale_at(step)
        return StepInputs(self.rates[step], scaled, self.table.weight_decays())


def phase_setup(setup: Setup, phase: Phase) -> PhaseSetup:
    """Set up a phase; `remat.phase_setups` also resolves its `remat: auto`.

    Args:
        setup: the run.
        phase: one of its phases.
    """
    config, table = setup.config, phase.table
    schedule_free = any(group.algorithm == SCHEDULE_FREE for group in table.groups)
    new = set(setup.model.report.new)
    optimizer = optimizer_from(table, config.optimizer)
    return PhaseSetup(
        phase=phase,
        compute=replace(setup.compute, trainable=frozenset(table.trainable)),
        optimizer=optimizer,
        rates=resolve_rates(phase, setup.length, config.optimizer.scale),
        schedule_free=schedule_free,
        averages=config.train.ema is not None or schedule_free,
        anchored=tuple(name for name in table.trainable if name not in new)
        if config.regularise.l2_sp
        else (),
        fused=fused_optimizer(config.optimizer, setup.model, table, optimizer),
    )


def with_config(setup: Setup, config: Config) -> Setup:
    """Return the run under a config that differs only in rates and seeds."""
    table = make_table(config, setup.model)
    phases = phases_from(config, setup.model, table, *_steps(setup.length))
    return replace(setup, config=config, phases=phases)


Outputs = Callable[..., dict[str, jax.Array]]


def outputs_of(setup: Setup, compute: Compute) -> Outputs:
    """Build the forward pass `(params, batch, key=None) -> outputs`, as the task reads them.

    Args:
        setup: the run.
        compute: the model's compute settings; a batch may hold the trunk's output.
    """
    inputs = setup.splits["train"].examples.inputs

    def outputs(params: Any, batch: Any, key: jax.Array | None = None) -> dict[str, jax.Array]:
        whole = with_inputs(batch, inputs)
        outputs = setup.model.apply(params, whole, key, compute)
        return dict(setup.bound.represent(params, outputs, whole, compute))

    return outputs


def objective_of(setup: Setup, compute: Compute) -> Callable[..., Sums]:
    """Build the task's objective `(params, batch, key) -> sums`."""
    return partial(setup.bound.objective, outputs_of(setup, compute))


def compared_of(setup: Setup, compute: Compute) -> Compared | None:
    """Build the objective in two parts, where it compares the rows of a batch."""
    comparison, forward = setup.bound.comparison(compute), outputs_of(setup, compute)
    if comparison is None:
        return None

    def represent(params: Any, batch: Any, key: jax.Array | None) -> dict[str, jax.Array]:
        outputs = forward(params, batch, key)
        return {name: outputs[name] for name in comparison.names}

    def compare(params: Any, representations: Any, batch: Any) -> Sums:
        return setup.bound.sums(comparison.outputs(params, representations, batch), batch)

    return Compared(represent, compare)


def build(
    config: Config,
    *,
    devices: Sequence | None = None,
    layout: Layout | None = None,
    new: Sequence[str] = (),
    weights: bool = True,
    facts: Facts | None = None,
) -> Setup:
    """Open the data, describe the model, lay out the mesh and resolve durations.

    Args:
        config: the whole config.
        devices: the devices to run on; None for all.
        layout: the batch layout of the run that is resumed; None computes it.
        new: the parameters that were new when that run started.
        weights: whether the checkpoint has weights; without them its config is enough.
        facts: what the task knew of the training rows when that run started; None computes it.

    Raises:
        UserError: anything that is wrong with the config, the data or the checkpoint.
    """
    task = make_task(config, facts)
    data, seed = config.data, config.run.seed.data
    sources = open_sources(task, data.specs, data.where, seed, data.image_folder)
    names = task.label_names(sources["train"])
    model = describe(config.model.checkpoint, model_options(config, names, new), weights=weights)
    runtime = make_runtime(config, model, table := make_table(config, model), devices)
    bound = bind_task(task, config, model, names, weights)
    splits = open_splits(bound, sources, config.data)
    task = (bound := fit_task(bound, splits["train"], facts)).task
    mixture = make_mixture(config, task, splits["train"], names)
    lengths = splits["train"].examples.lengths if mixture is None else mixture.lengths
    layout = _lay_out(config, task, runtime.mesh, lengths, layout)
    plan = TrainPlan(lengths, config.run.seed.data, *layout.shape, mixture, layout.growth)
    phases = phases_from(config, model, table, *_steps(length := resolve_length(config, plan)))
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
        compute=replace(runtime.compute, trainable=frozenset(phases[0].table.trainable)),
        length=length,
        phases=phases,
        why=(*((runtime.why,) if runtime.why else ()), *task.notes),
        quantized=quantized_leaves(config, model),
    )


def _steps(length: Length) -> tuple[int, Pace]:
    return length.total_steps, length.pace


def bind_task(
    task: Task, config: Config, model: Model, names: Sequence[str], weights: bool
) -> BoundTask[Any, Any]:
    """Bind the task to a model, with the config's maximum length and cache."""
    tools = Tools(model, config.data.max_length, data_cache(config.data.cache), weights)
    return task.bind(tools, names)


def _lay_out(
    config: Config, task: Task, mesh: jax.sharding.Mesh, lengths: np.ndarray, earlier: Layout | None
) -> Layout:
    """Return the batch layout: that of the run that is resumed, or a new one."""
    if earlier is not None:
        check_batches(mesh, earlier.rows, earlier.row_length, config.train.accumulate)
        check_growth(earlier, config.train.accumulate)
        return replace(earlier, divide_by=position_divisor(mesh))
    if config.data.pack is True and not task.packs:
        raise UserError(
            f"data.pack: examples of the task '{task.kind}' cannot be packed.",
            "Set data.pack to auto.",
        )
    packs = task.packs if config.data.pack == "auto" else config.data.pack
    divisor = row_divisor(mesh, config.train.accumulate)
    # A row has one position where every example is a row of its own.
    row_length = 1 if lengths.max() == 1 else config.data.row_length
    positions_by = position_divisor(mesh)
    layout = plan_rows(lengths, config.data.batch_size, row_length, packs, divisor, positions_by)
    return with_growth(layout, config.train.batch_warmup, config.train.accumulate, len(lengths))
