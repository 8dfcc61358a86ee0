"""The prediction story: inputs in, what the run's best checkpoint says of each out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.data.packing import round_up
from jaxft.data.sources import given_rows
from jaxft.engine.process import prepare_process
from jaxft.engine.trained import open_trained
from jaxft.models.registry import Model
from jaxft.tasks.contract import Examples, Tools

# Examples a batch, and the multiple that its length is rounded up to: few shapes to compile.
ROWS, STRIDE = 32, 32


def predict(run: Path, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Say of each input what the run learned to say.

    Args:
        run: the run folder.
        inputs: as the task reads them: one text each, a pair with a tab between, image files.

    Yields:
        The input and what the task says of it (`label`, `probabilities`); for texts `cut` too,
        the number of tokens that the model's positions did not hold, where there are any.

    Raises:
        UserError: it is no run, or an input is not as it has to be.
    """
    prepare_process()
    trained = open_trained(run)
    task, model, names = trained.task, trained.model, trained.label_names
    tools = Tools(model, trained.config.data.max_length, None)
    step = jax.jit(lambda params, batch: task.outcomes(model.apply(params, batch), batch))
    waiting = task.rows_from_input(inputs)
    while rows := list(islice(waiting, ROWS)):
        source = given_rows(rows)
        examples = task.examples(source, None, tools)
        outcomes = jax.device_get(step(model.params, _batch(examples, model)))
        kept = {name: values[: len(rows), 0] for name, values in outcomes.items()}
        for number, said in enumerate(task.describe(source, kept, examples, names)):
            yield said | examples.remarks.get(number, {})


def _batch(examples: Examples, model: Model) -> dict[str, np.ndarray]:
    """At most `ROWS` examples, one a row; the rows that are left over hold none."""
    index = np.full((ROWS, 1), -1)
    index[: len(examples), 0] = np.arange(len(examples))
    longest = int(examples.lengths.max())
    if longest > 1:  # where an example is a row, whatever its arrays are, a row is one position
        longest = min(round_up(longest, STRIDE), model.max_positions)
    return examples.collate(index, longest)
