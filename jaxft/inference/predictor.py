"""Predictor: a run's model, or a checkpoint that has the head of a task, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.config.fields import TaskSection
from jaxft.config.load import Config, parse_config
from jaxft.data.batching.plans import Layout
from jaxft.engine.recipe import make_table
from jaxft.engine.setup import make_task, model_options
from jaxft.engine.trained import Which, open_trained
from jaxft.errors import UserError
from jaxft.inference.placed import Placed, place_model, place_trained
from jaxft.models.generate.decode import WRITES
from jaxft.models.load import IMAGE_GENERATION, describe
from jaxft.models.model import Model
from jaxft.models.values import with_values
from jaxft.runs.folder import RUN_FILE
from jaxft.storage.files import place
from jaxft.tasks.parts.classes.section import ClassesSection
from jaxft.tasks.parts.contract import BoundTask, Task
from jaxft.tasks.parts.tools import Tools

# Hugging Face's `problem_type` -> `task.problem`; none is one label.
PROBLEMS = {"multi_label_classification": "multi_label", "regression": "regression"}
GENERATES = (*WRITES, IMAGE_GENERATION)  # heads that a task of the same name has
UNREAD = "csv:unread.csv"  # a config names its rows, and a prediction reads others
SEED = 0  # of parameters that a checkpoint lacks; there are none where it predicts


@dataclass(frozen=True)
class Predictor:
    """A task on a model that is placed on the devices.

    Attributes:
        bound: the task.
        placed: the model.
        config: the run's, or one with the checkpoint's task and defaults.
    """

    bound: BoundTask[Any, Any]
    placed: Placed
    config: Config


def is_run(name: str | Path) -> bool:
    """Return whether a name is that of a run folder."""
    return (place(name) / RUN_FILE).is_file()


def is_checkpoint(name: str | Path) -> bool:
    """Return whether a name is that of a checkpoint, as in `model.checkpoint`.

    A name of no existing path counts as a hub id if it has the form `owner/name` and there is no
    folder `owner`.
    """
    path, written = place(name), str(name)
    if is_run(name):
        return False
    if (path / "config.json").is_file() or written.startswith("package:"):
        return True
    return not path.exists() and not path.parent.is_dir() and written.count("/") == 1


def head_of(name: str, kind: str | None) -> str | None:
    """Return the head of a checkpoint: that of a kind of task, or its own.

    Raises:
        UserError: there is no such kind of task, or it has no head of its own; or the
            architecture that config.json names is not supported.
    """
    if kind is None:
        return describe(name).head
    return kind if kind in GENERATES else task_of_checkpoint(name, kind).head


def open_predictor(
    name: str | Path, rows: int, which: Which = "best", kind: str | None = None
) -> Predictor:
    """Open a run or a checkpoint for prediction.

    Args:
        name: a run folder, or a checkpoint as in `model.checkpoint`.
        rows: the most rows of a batch.
        which: the checkpoint of a run: `best`, `last`, or a step.
        kind: the kind of task of a checkpoint whose config.json does not name one.

    Raises:
        UserError: it is neither, or a checkpoint without a trained head of the task; or an option
            does not apply to it.
    """
    if not is_checkpoint(name):
        if kind is not None and is_run(name):
            raise UserError(
                f"'{name}' is a run, which has a task: --task does not apply.", "Remove it."
            )
        trained = open_trained(place(name), which, spread=True)
        return Predictor(trained.bound, place_trained(trained, rows), trained.config)
    if which != "best":
        raise UserError(
            f"'{name}' is a single checkpoint, and no run: --checkpoint does not apply.",
            "Remove it.",
        )
    return _open_pretrained(str(name), rows, kind)


def _open_pretrained(name: str, rows: int, kind: str | None) -> Predictor:
    """Open a checkpoint with the head of a kind of task, or its own."""
    kind = kind or describe(name).head
    if kind is None:
        raise UserError(
            f"'{name}' has no head, so it predicts nothing as it is.",
            "Train it first: jaxft init DATA; or name the task of its head with --task.",
        )
    config = _config_of(name, kind)
    described = describe(name, model_options(config, ()))
    if new := described.report.new:
        raise UserError(
            f"'{name}' has no trained head of {kind}: its weights lack '{new[0]}'.",
            "Train it first: jaxft init DATA.",
        )
    config = _with_problem(config, described)
    model = with_values(described, seed=SEED)
    bound = make_task(config).bind(Tools(model, None, None), model.labels or ())
    # Each chunk of rows has row lengths of its own, and no example shares a row.
    layout = Layout(rows, 1, 1, float(rows), 0.0)
    placed = place_model(config, model, make_table(config, described), layout)
    return Predictor(bound, placed, config)


def task_of_checkpoint(name: str, kind: str, stated: Mapping[str, Any] | None = None) -> Task:
    """Return a task of a kind with a head of its own, as a checkpoint's files state it.

    Args:
        name: the checkpoint.
        kind: of the task.
        stated: keys of the config's `task`, as files beside config.json have them.

    Raises:
        UserError: there is no such kind, or it has none.
    """
    return make_task(_config_of(name, kind, stated))


def _config_of(name: str, kind: str, stated: Mapping[str, Any] | None = None) -> Config:
    """Return a config of a checkpoint and a kind of task with a head of its own.

    Raises:
        UserError: there is no such kind, or it has none.
    """
    try:
        config = parse_config(
            {
                "run": {"name": "predict"},
                "model": {"checkpoint": name},
                "task": {"kind": kind, **(stated or {})},
                "data": {"train": UNREAD, "eval": UNREAD},
            }
        )
    except UserError as error:
        if "'task.kind'" not in error.message:  # a task with keys that no checkpoint states
            raise _no_head(kind) from None
        message = error.message.replace("config: 'task.kind'", "--task")
        raise UserError(message, error.hint) from None
    if make_task(config).head != kind:
        raise _no_head(kind)
    return config


def _no_head(kind: str) -> UserError:
    return UserError(
        f"--task: checkpoints have no head of the task '{kind}'.",
        "Name a task that the head was trained for, such as text_classification.",
    )


def _with_problem(config: Config, model: Model) -> Config:
    """Return the config with the kind of target that the checkpoint's config.json states."""
    if not isinstance(config.task, ClassesSection):
        return config
    stated = model.fields.get("problem_type")
    problem = PROBLEMS.get(str(stated))
    if problem is None and len(model.labels or ()) == 1:
        problem = "regression"  # transformers trains one output by the squared error
    if problem is None:
        return config
    task: TaskSection = config.task.model_copy(update={"problem": problem})
    return config.model_copy(update={"task": task})
