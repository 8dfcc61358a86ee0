"""The prediction story: inputs in, what the run's best checkpoint says of each out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.data.batching.packing import round_up
from jaxft.data.sources.open import Source, given_rows, open_source
from jaxft.engine.inputs import check_columns
from jaxft.engine.trained import Trained, open_trained
from jaxft.errors import UserError
from jaxft.models.load import Model
from jaxft.tasks.parts.examples import Examples

# Examples a batch, and the multiple that its length is rounded up to: few shapes to compile.
ROWS, STRIDE = 32, 32


def predict(run: Path, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Say of each input what the run learned to say.

    Args:
        run: the run folder.
        inputs: as the task reads them: one text each, a pair with a tab between, a row of a table
            as a JSON object, image files.

    Yields:
        The input and what the task says of it (`label`, `probabilities`); for texts `cut` too,
        the number of tokens that the model's positions did not hold, where there are any.

    Raises:
        UserError: it is no run, or an input is not as it has to be.
    """
    trained = open_trained(run)
    waiting = trained.bound.rows_from_input(inputs)
    chunks = iter(lambda: list(islice(waiting, ROWS)), [])
    yield from _said(trained, (given_rows(rows) for rows in chunks))


def predict_rows(run: Path, spec: str) -> Iterator[dict[str, Any]]:
    """Say of each row of a table what the run learned to say.

    Args:
        run: the run folder, of a task that reads columns.
        spec: a source string; the rows may have more columns than are read.

    Yields:
        As `predict`.

    Raises:
        UserError: it is no run, its task reads no columns, or the rows have not those that it
            reads; a cell is not as it has to be, by the number of its row.
    """
    trained = open_trained(run)
    columns = trained.task.input_columns
    if columns is None:
        raise UserError(
            f"{spec} is a table, and what {trained.task.kind} reads is no row of one.",
            "Give a file with one input a line.",
        )
    source = open_source(spec)
    check_columns(source, columns)
    starts = range(0, len(source), ROWS)
    yield from _said(
        trained, (replace(source, order=source.order[start : start + ROWS]) for start in starts)
    )


def _said(trained: Trained, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
    """What a run says of the rows of each source, at most `ROWS` in one."""
    bound, model = trained.bound, trained.model
    step = jax.jit(lambda params, batch: bound.outcomes(model.apply(params, batch), batch))
    for source in sources:
        examples = bound.examples(source, labelled=False)
        batches = [  # a row may be several examples
            jax.device_get(step(model.params, _batch(examples, model, first)))
            for first in range(0, len(examples), ROWS)
        ]
        kept = {
            name: np.concatenate([batch[name][:, 0] for batch in batches])[: len(examples)]
            for name in batches[0]
        }
        for number, said in enumerate(bound.describe(source, kept, examples)):
            yield said | examples.remarks.get(number, {})


def _batch(examples: Examples, model: Model, first: int) -> dict[str, np.ndarray]:
    """At most `ROWS` examples from one on, one a row; the rows that are left over hold none."""
    index = np.full((ROWS, 1), -1)
    numbers = np.arange(first, min(first + ROWS, len(examples)))
    index[: len(numbers), 0] = numbers
    longest = int(examples.lengths.max())
    if longest > 1:  # where an example is a row, whatever its arrays are, a row is one position
        longest = min(round_up(longest, STRIDE), model.max_positions)
    return examples.collate(index, longest)
