"""Predictions of a run or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from jaxft.data.sources.open import given_rows, open_source
from jaxft.data.sources.source import Source
from jaxft.engine.evaluate import in_order, run_split
from jaxft.engine.inputs import check_columns
from jaxft.engine.step import Batch, Params, make_eval_step
from jaxft.engine.trained import Which
from jaxft.errors import UserError
from jaxft.inference.predictor import Predictor, open_predictor

ROWS = 32  # inputs read before the first prediction, and the most rows of a batch


def predict(
    run: Path | str, inputs: Iterable[str], which: Which = "best", task: str | None = None
) -> Iterator[dict[str, Any]]:
    """Predict each input with a run, or with a checkpoint that has the head of a task.

    Args:
        run: the run folder, or a checkpoint as in `model.checkpoint`.
        inputs: as the task reads them: texts, pairs of texts separated by a tab, rows of a table
            as JSON objects, or image files.
        which: the checkpoint of a run: `best`, `last`, or a step.
        task: the kind of task of a checkpoint whose config.json does not name one.

    Yields:
        The input and its prediction (`label`, `probabilities`); for truncated texts also `cut`,
        the number of tokens beyond the model's positions.

    Raises:
        UserError: the folder is neither, a checkpoint has no trained head of the task, or an input
            is invalid.
    """
    if isinstance(inputs, str):
        raise UserError("predict: the inputs are one text, not several.", "Put it into a list.")
    predictor = open_predictor(run, ROWS, which, task)
    rows = predictor.bound.rows_from_input(inputs)
    chunks = iter(lambda: list(islice(rows, ROWS)), [])
    yield from _predictions(predictor, (given_rows(chunk) for chunk in chunks))


def predict_given(
    run: Path | str, groups: Iterable[Sequence[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Predict rows in memory with a run's best checkpoint, as `predict` does.

    Args:
        run: the run folder.
        groups: rows; those of one group have the same columns.
    """
    predictor = open_predictor(run, ROWS)
    chunks = (
        group[start : start + ROWS] for group in groups for start in range(0, len(group), ROWS)
    )
    yield from _predictions(predictor, (given_rows(chunk) for chunk in chunks))


def predict_rows(
    run: Path | str, spec: str, which: Which = "best", task: str | None = None
) -> Iterator[dict[str, Any]]:
    """Predict each row of a table with a run, or with a checkpoint that has the head of a task.

    Args:
        run: the run folder, of a task that reads columns, or a checkpoint.
        spec: a source string; further columns are ignored.
        which, task: see `predict`.

    Yields:
        As `predict`.

    Raises:
        UserError: see `predict`; or its task reads no columns, a column is missing, or a cell is
            invalid; the message names the row.
    """
    predictor = open_predictor(run, ROWS, which, task)
    own = predictor.bound.task
    columns = own.input_columns
    if columns is None:
        raise UserError(
            f"{spec} is a table, and the task {own.kind} reads no rows of tables.",
            "Give a file with one input per line.",
        )
    source = open_source(spec, image_folder=predictor.config.data.image_folder)
    check_columns(source, columns)
    source = source.with_fields(columns)
    starts = range(0, len(source), ROWS)
    yield from _predictions(
        predictor, (replace(source, order=source.order[start : start + ROWS]) for start in starts)
    )


def _predictions(predictor: Predictor, sources: Iterable[Source]) -> Iterator[dict[str, Any]]:
    """Yield the predictions of the rows of each source, at most `ROWS` in one."""
    bound, placed = predictor.bound, predictor.placed
    mesh, compute, model = placed.runtime.mesh, placed.runtime.compute, placed.model

    def outcomes(params: Params, batch: Batch) -> tuple[dict, dict]:
        outputs = bound.represent(params, model.apply(params, batch, None, compute), batch, compute)
        return {}, bound.outcomes(outputs, batch) | {"example_ids": batch["example_ids"]}

    shardings = dict(placed.runtime.shardings)
    step = make_eval_step(outcomes, param_shardings=shardings, mesh=mesh)
    for source in sources:
        examples = bound.examples(source, labelled=False)
        results = run_split(mesh, placed.layout, step, model.params, examples)
        each = in_order([outcome for _, outcome in results], len(examples))
        for number, line in enumerate(bound.describe(source, each, examples)):
            yield line | examples.remarks.get(number, {})
