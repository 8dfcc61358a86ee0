"""Predictions of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from jaxft.data.sources.open import Source, given_rows, open_source
from jaxft.engine.evaluate import in_order, run_split
from jaxft.engine.inputs import check_columns
from jaxft.engine.step import Batch, Params, make_eval_step
from jaxft.engine.trained import Trained, Which, open_trained
from jaxft.errors import UserError
from jaxft.inference.placed import place_trained

ROWS = 32  # inputs read before the first prediction, and the most rows of a batch


def predict(run: Path, inputs: Iterable[str], which: Which = "best") -> Iterator[dict[str, Any]]:
    """Predict each input with a checkpoint of a run.

    Args:
        run: the run folder.
        inputs: as the task reads them: texts, pairs of texts separated by a tab, rows of a table
            as JSON objects, or image files.
        which: `best`, `last`, or a step.

    Yields:
        The input and its prediction (`label`, `probabilities`); for truncated texts also `cut`,
        the number of tokens beyond the model's positions.

    Raises:
        UserError: the folder is no run, or an input is invalid.
    """
    trained = open_trained(run, which)
    rows = trained.bound.rows_from_input(inputs)
    chunks = iter(lambda: list(islice(rows, ROWS)), [])
    yield from _predictions(trained, (given_rows(chunk) for chunk in chunks))


def predict_rows(run: Path, spec: str, which: Which = "best") -> Iterator[dict[str, Any]]:
    """Predict each row of a table with a checkpoint of a run.

    Args:
        run: the run folder, of a task that reads columns.
        spec: a source string; further columns are ignored.
        which: `best`, `last`, or a step.

    Yields:
        As `predict`.

    Raises:
        UserError: the folder is no run, its task reads no columns, a column is missing, or a cell
            is invalid; the message names the row.
    """
    trained = open_trained(run, which)
    columns = trained.task.input_columns
    if columns is None:
        raise UserError(
            f"{spec} is a table, and a run of {trained.task.kind} reads no rows of tables.",
            "Give a file with one input per line.",
        )
    source = open_source(spec, image_folder=trained.config.data.image_folder)
    check_columns(source, columns)
    starts = range(0, len(source), ROWS)
    yield from _predictions(
        trained, (replace(source, order=source.order[start : start + ROWS]) for start in starts)
    )


def _predictions(trained: Trained, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
    """Yield a run's predictions of the rows of each source, at most `ROWS` in one."""
    bound, model = trained.bound, trained.model
    placed = place_trained(trained, ROWS)
    mesh, compute = placed.runtime.mesh, placed.runtime.compute

    def outcomes(params: Params, batch: Batch) -> tuple[dict, dict]:
        outputs = model.apply(params, batch, None, compute)
        return {}, bound.outcomes(outputs, batch) | {"example_ids": batch["example_ids"]}

    shardings = dict(placed.runtime.shardings)
    step = make_eval_step(outcomes, param_shardings=shardings, mesh=mesh)
    for source in sources:
        examples = bound.examples(source, labelled=False)
        results = run_split(mesh, placed.layout, step, placed.model.params, examples)
        each = in_order([outcome for _, outcome in results], len(examples))
        for number, line in enumerate(bound.describe(source, each, examples)):
            yield line | examples.remarks.get(number, {})
