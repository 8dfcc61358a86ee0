"""The prediction story: inputs in, what the run's best checkpoint says of each out."""

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
from jaxft.engine.trained import Trained, open_trained
from jaxft.errors import UserError
from jaxft.inference.placed import place_trained

ROWS = 32  # inputs that are read before the first is answered, and the most rows of a batch


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
