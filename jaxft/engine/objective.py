"""What a step differentiates: the task's loss of a batch, and its metrics beside."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxft.config.load import Config
from jaxft.errors import UserError
from jaxft.models.load import Model
from jaxft.tasks.parts.contract import Sums, Task
from jaxft.tasks.text_classification import TextClassification

AGAIN = 2**31 - 1  # folds the key of a second dropout; blocks and parts count from 0


def objective(task: Task, outputs: Callable, params, batch, key: jax.Array | None) -> Sums:
    """The loss and metrics of one batch, as sums and weights.

    Args:
        task: what is learned.
        outputs: (parameters, batch, key) -> what the model makes of the batch.
        params, batch, key: those; with a key there is dropout, and R-Drop compares two.
    """
    first = outputs(params, batch, key)
    found = {"loss": task.loss(first, batch), **task.metrics(first, batch)}
    if key is not None and isinstance(task, TextClassification) and task.section.r_drop:
        second = outputs(params, batch, jax.random.fold_in(key, AGAIN))
        found["loss"] = task.loss_of_two(first, second, batch)
    return found


def check_dropout(config: Config, model: Model) -> None:
    """Raise a UserError where two dropouts are asked for and there is none."""
    asked = getattr(config.task, "r_drop", None) is not None
    if asked and model.config == model.config.with_dropout(0.0):
        raise UserError(
            "task.r_drop compares two dropouts of a text, and this model has no dropout.",
            "Set model.dropout; 0.1 is usual.",
        )
