"""Trained run: its best parameters on their model, and the base that they started from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from etils.epath import PathLike

from jaxft.config.load import Config, parse_config
from jaxft.device.distributed import is_first, processes
from jaxft.engine.compute import shardings_to_read
from jaxft.engine.recipe import make_table
from jaxft.engine.setup import make_task, model_options
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.models.adapters.read import ADAPTER_CONFIG, ADAPTER_FILES
from jaxft.models.companions import is_written, small_files
from jaxft.models.load import Model, describe
from jaxft.models.values import read_value, with_values
from jaxft.models.weights.source import Checkpoint, Source, check_own_file, resolve
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RUN_FILE, RunFolder, open_run
from jaxft.storage import files
from jaxft.storage.buckets import fetched
from jaxft.tasks.parts.contract import BoundTask, Task
from jaxft.tasks.parts.tools import Tools

Which = int | str  # a step, "best" or "last"
ADAPTER = "adapter"  # the folder of a run's adapter, and in its base of its initial adapter


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
    """

    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """Content of `result.json`: split, step, metrics, examples."""
        return open_run(self.folder).read_json("result.json")

    @property
    def metrics(self) -> dict[str, float]:
        """Scores of the final evaluation."""
        return self.result["metrics"]

    @property
    def best(self) -> int:
        """Step of the best checkpoint."""
        return self.result["step"]

    def model(self, which: Which = "best") -> Model:
        """Load the trained model; a number that it predicts has the units of the data.

        Args:
            which: `best`, `last`, or a step.
        """
        trained = open_trained(self.folder, which)
        return trained.task.in_units(trained.model)


@dataclass(frozen=True)
class Trained:
    """A trained model with its task and config, as eval, predict and export need it.

    Attributes:
        run: the folder.
        config: the run's config; its checkpoint has the untrained parameters.
        task: what was learned.
        label_names: the classes, in order of class id.
        model: the model with the trained parameters, in the units that it was trained in.
        step: the step of their checkpoint.
        table: the LayerTable without phases.
    """

    run: RunFolder
    config: Config
    task: Task
    label_names: tuple[str, ...]
    model: Model
    step: int
    table: LayerTable

    @property
    def bound(self) -> BoundTask[Any, Any]:
        """Task on the trained model."""
        tools = Tools(self.model, self.config.data.max_length, None)
        return self.task.bind(tools, self.label_names)


def task_of(folder: Path) -> Task:
    """Return the task of a run folder, from its config alone."""
    run = open_run(folder)
    return make_task(parse_config(run.config(), f"{run.path}/config.yaml"))


def open_trained(folder: Path, which: Which = "best", *, spread: bool = False) -> Trained:
    """Load a run's parameters: the trained from a checkpoint, the others from its base.

    Args:
        folder: the run folder.
        which: `best`, `last`, or a step.
        spread: read each device's shard on the config's mesh, if the devices can form it; else
            everything is read to one device.

    Raises:
        UserError: it is not a run folder, has no such checkpoint, or its base has changed.
    """
    run = open_run(folder)
    config = parse_config(run.config(), f"{run.path}/config.yaml")
    about = run.read_json(RUN_FILE)
    if "base" not in about:
        raise UserError(f"{run.path}: the run ended before its first step.")
    config = with_best_metric(with_checkpoint(config, base_checkpoint(run, config)), run)
    names = tuple(about["labels"])
    options = model_options(config, names, new_at_start(run))
    described = describe(config.model.checkpoint, options)
    table = make_table(config, described)
    shardings = shardings_to_read(config, described, table, spread)
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
        for name, leaf in described.params.items()
    }
    described = replace(described, params=shapes)
    check_base(run, described.source)
    task = make_task(config).fitted(about.get("fitted", {}))
    with open_checkpoints(run, config, task, read_only=True) as checkpoints:
        step = checkpoints.resolve(which)
        trained = checkpoints.load_params(step, shardings)
    expected = set(table.trainable)
    # With phases, a checkpoint holds only the parameters that had trained by then.
    odd = trained.keys() - expected if config.phases else trained.keys() ^ expected
    if odd:
        raise UserError(
            f"{run.path}: checkpoint {step} and config.yaml disagree on whether '{min(odd)}' "
            "trained.",
            "Restore the config.yaml that the run was trained with.",
        )
    model = with_values(described, seed=config.run.seed.init, known=trained)
    truncates = task.truncates and model.max_positions > 1
    length = Tools(model, config.data.max_length, None).max_length if truncates else None
    model = replace(model, problem_type=task.problem_type, text_length=length)
    return Trained(run, config, task, names, model, step, table)


def open_checkpoints(
    run: RunFolder, config: Config, task: Task, *, read_only: bool = False
) -> Checkpoints:
    """Open a run's checkpoints, with the metric that chooses its best."""
    metric = best_metric(config, task)
    return Checkpoints(
        run.checkpoints,
        keep=config.checkpoint.keep,
        best_metric=metric,
        mode="min" if task.metrics[metric].lower_is_better else "max",
        read_only=read_only,
    )


def best_metric(config: Config, task: Task) -> str:
    """Return the metric that chooses the best checkpoint.

    Raises:
        UserError: the task has no metric of that name.
    """
    asked = config.checkpoint.best
    if asked == "auto":
        return task.primary
    if asked not in task.metrics:
        raise UserError(
            f"checkpoint.best: '{asked}' is not a metric of {task.kind}.",
            f"Known: {', '.join(task.metrics)}.",
        )
    return asked


def with_best_metric(config: Config, run: RunFolder) -> Config:
    """Return the config with the metric that a run has chosen its best by.

    A later version may choose by another one by default.
    """
    chosen = run.read_json(RUN_FILE).get("best_metric")
    if config.checkpoint.best != "auto" or not chosen:
        return config
    section = config.checkpoint.model_copy(update={"best": chosen})
    return config.model_copy(update={"checkpoint": section})


def base_checkpoint(run: RunFolder, config: Config) -> Checkpoint:
    """Return the checkpoint that a run started from: its own copy, or else the source.

    Raises:
        UserError: a file of the copy is not what was written.
    """
    if "base" in run.read_json(RUN_FILE):
        for name in run.digests.names(f"{run.base.name}/"):
            run.check(name)
    copied = is_written(run.base)
    return str(run.base) if copied else config.model.checkpoint


def with_checkpoint(config: Config, checkpoint: Checkpoint) -> Config:
    """Return the config with another checkpoint, and with the adapter stored beside that."""
    model: dict[str, Any] = {"checkpoint": checkpoint}
    if checkpoint != config.model.checkpoint:  # a run's copy holds its tokenizer
        model["tokenizer"] = None
    update: dict[str, Any] = {"model": config.model.model_copy(update=model)}
    if config.adapter.checkpoint is not None and isinstance(checkpoint, str):
        adapter_folder = files.place(checkpoint) / ADAPTER
        if (adapter_folder / ADAPTER_CONFIG).exists():
            here = str(fetched(adapter_folder))
            update["adapter"] = config.adapter.model_copy(update={"checkpoint": here})
    return config.model_copy(update=update)


def new_at_start(run: RunFolder) -> tuple[str, ...]:
    """Return the parameters that were new when a run started; its base has them all."""
    return tuple(run.read_json(RUN_FILE).get("base", {}).get("new", ()))


def save_base(run: RunFolder, config: Config, model: Model, quantized: bool = False) -> None:
    """Save the parameters that a run starts from, and their hash in `run.json`.

    A copy is a Hugging Face folder, which makes the run self-contained. Where parameters are
    `quantized`, or no process has whole values, each is read again from its source.
    """
    if not is_first():
        return
    plain, copy = model.plain(), config.checkpoint.base == "copy"
    if copy and config.adapter.checkpoint is not None:
        copy_adapter(fetched(config.adapter.checkpoint), run.base / ADAPTER)
    again = quantized or processes() > 1
    values = InitialParams(plain, config.run.seed.init) if again else plain.params
    # Overwrite: a start that was killed may have left part of the copy in the run's folder.
    source = (
        resolve(str(plain.save(str(run.base), values, overwrite=True))) if copy else model.source
    )
    if copy and model.dense is not None:
        source = model.dense.with_weights(source)
    if copy:
        run.digests.record(small_files(source, run.base.name))
    about = {"kind": config.checkpoint.base, "sha256": source.sha256, "new": plain.report.new}
    run.update(base={**about, "grown": plain.matching.grown})


def copy_adapter(folder: Path, target: PathLike) -> None:
    """Copy an adapter's files.

    Raises:
        UserError: one of them is a link out of its folder.
    """
    paths = [path for path in map(folder.joinpath, ADAPTER_FILES) if path.is_file()]
    for path in paths:
        check_own_file(path, folder)
    for path in paths:
        files.write_atomic(files.place(target) / path.name, path.read_bytes())


class InitialParams(Mapping[str, jax.Array]):
    """Initial parameters of a model, each read by this process when it is accessed."""

    def __init__(self, model: Model, seed: int):
        self._model, self._seed = model, seed

    def __getitem__(self, name: str) -> jax.Array:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return read_value(self._model, name, here, seed=self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.leaves)

    def __len__(self) -> int:
        return len(self._model.leaves)


def check_base(run: RunFolder, source: Source) -> None:
    """Raise a UserError where the base of a run has changed since it started."""
    base = run.read_json(RUN_FILE).get("base")
    if base is not None and source.sha256 != base["sha256"]:
        raise UserError(
            f"{source.folder}: the weights are not those that the run started from.",
            "Its checkpoints hold only what was trained; restore the original weights.",
        )


def write_lines(run: RunFolder, name: str, lines: Any) -> None:
    """Write JSON lines into a run folder atomically; only the first process writes."""
    if is_first():
        run.write(name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
