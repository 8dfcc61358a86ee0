"""Evaluation of a split: its scores, and the outcomes of each example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxft.data.batching.eval_plans import EvalPlan, plan_eval
from jaxft.data.batching.loader import Collate, batches
from jaxft.data.batching.plans import Layout
from jaxft.device.mesh import batch_sharding, my_rows, overlaps, place_batch
from jaxft.engine.inputs import Split, with_inputs
from jaxft.engine.setup import Setup, outputs_of
from jaxft.engine.step import make_eval_step
from jaxft.errors import UserError
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.contract import BoundTask
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.metric import HIGHER, Metric

EvalStep = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array]], tuple[dict, dict]]


class Interrupted(Exception):
    """A request to stop that came during an evaluation."""


class NotFiniteError(UserError):
    """Evaluation whose loss is NaN or infinite, so that there are no metrics."""

    def __init__(self, split: str):
        super().__init__(
            f"The loss on the {split} rows is not finite.",
            "The weights or the rows hold NaN or infinite values, or optimizer.lr was too high.",
        )


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split, and each example's outcomes: `[examples, ...]` by name."""

    scores: dict[str, float]
    outcomes: dict[str, np.ndarray]


def build_eval_step(setup: Setup, compute: Compute | None = None) -> EvalStep:
    """Jit the evaluation step `(params, batch) -> (sums, outcomes)` of a run's task.

    Args:
        setup: the run.
        compute: the model's compute settings; None for `setup.compute`.
    """
    function = evaluation_function(setup, compute or setup.compute)
    return make_eval_step(function, param_shardings=setup.argument_shardings, mesh=setup.mesh)


def evaluation_function(setup: Setup, compute: Compute) -> EvalStep:
    """Build the evaluation step `(params, batch) -> (sums, outcomes)`, not yet jitted."""
    forward, bound = outputs_of(setup, compute), setup.bound
    inputs = setup.splits["train"].examples.inputs

    def evaluate_batch(params: Any, batch: Any) -> tuple[dict, dict]:
        outputs = forward(params, batch)
        outputs |= bound.generated(params, with_inputs(batch, inputs), compute)
        sums, outcomes = bound.sums(outputs, batch), bound.outcomes(outputs, batch)
        return sums, outcomes | {"example_ids": batch["example_ids"]}

    return evaluate_batch


def evaluate(
    setup: Setup,
    step: EvalStep,
    params: Mapping[str, jax.Array],
    split: Split,
    interrupted: Callable[[], bool] = lambda: False,
    collate: Collate | None = None,
) -> Evaluation:
    """Score every example of a split once; padding counts nowhere.

    Args:
        setup: the run.
        step: from `build_eval_step`.
        params: every parameter.
        split: what to score.
        interrupted: called before each batch; True stops the evaluation.
        collate: makes the split's batches; None for the task's own.

    Raises:
        Interrupted: `interrupted` returned True.
    """
    results = []
    for result in run_split(setup.mesh, setup.layout, step, params, split.examples, collate):
        if interrupted():
            raise Interrupted
        results.append(result)
    return summarise(setup.bound, split, results)


def summarise(
    bound: BoundTask[Any, Any], split: Split, results: Sequence[tuple[dict, dict]]
) -> Evaluation:
    """Reduce the results of a split's batches to its evaluation.

    Args:
        bound: the task on the model.
        split: the split that was scored.
        results: each batch's sums and outcomes, on the host.

    Raises:
        NotFiniteError: the loss is NaN or infinite.
    """
    scores = reduced(bound.task.metrics, [sums for sums, _ in results])
    if not math.isfinite(scores.get("loss", 0.0)):
        raise NotFiniteError(split.name)
    outcomes = in_order([arrays for _, arrays in results], len(split.examples))
    return Evaluation(scores | bound.summarise(outcomes, split.examples), outcomes)


def reduced(
    metrics: Mapping[str, Metric], batch_sums: Sequence[Mapping[str, tuple[Any, Any]]]
) -> dict[str, float]:
    """Reduce the sums of a split's batches to scores.

    Args:
        metrics: name -> the reduction from sums to a score; a sum without a metric becomes a mean.
        batch_sums: each batch's sums and weights, scalars or arrays.
    """
    totals: dict[str, tuple[Any, Any]] = {}
    for sums in batch_sums:
        for name, pair in sums.items():
            total, weight = (np.asarray(one, np.float64) for one in pair)
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + total, before[1] + weight
    streams = {name: metric.stream or name for name, metric in metrics.items()}
    own = {name: stream for name, stream in streams.items() if stream in totals}
    rest = {name: name for name in totals if name not in own.values()}
    return {
        name: metrics.get(name, HIGHER).reduce(*totals[stream])
        for name, stream in {**rest, **own}.items()
    }


def predictions(
    bound: BoundTask[Any, Any], split: Split, evaluation: Evaluation
) -> Iterator[dict[str, Any]]:
    """Yield the line of each example in a predictions file."""
    lines = bound.describe(split.source, evaluation.outcomes, split.examples)
    for number, one in enumerate(lines):
        yield {"id": number, **one}


def run_split(
    mesh: jax.sharding.Mesh,
    layout: Layout,
    step: EvalStep,
    params: Any,
    examples: Examples,
    collate: Collate | None = None,
) -> Iterator[Any]:
    """Yield each batch's sums and outcomes, on the host."""
    plan = evaluation_plan(layout, examples)
    return run_plan(mesh, step, params, plan, collate or examples.collate)


def evaluation_plan(layout: Layout, examples: Examples) -> EvalPlan:
    """Plan the batches of an evaluation in the run's layout: every example once."""
    segments = layout.segments if layout.segments > 1 else None
    shape = layout.rows, layout.row_length, segments, layout.divide_by
    return plan_eval(examples.lengths, *shape)


def run_plan(
    mesh: jax.sharding.Mesh, step: EvalStep, params: Any, plan: EvalPlan, collate: Collate
) -> Iterator[Any]:
    """Yield a step's result for each batch of a plan, on the host, while the next one runs."""
    overlap = overlaps(mesh)
    sharding = batch_sharding(mesh)
    ahead, (mine, blocks) = None, my_rows(mesh)
    for batch in batches(
        plan,
        collate,
        0,
        len(plan),
        process_index=mine,
        process_count=blocks,
    ):
        running = step(params, place_batch(batch, sharding))
        if not overlap:
            yield jax.device_get(running)
            continue
        if ahead is not None:
            yield jax.device_get(ahead)
        ahead = running
    if ahead is not None:
        yield jax.device_get(ahead)


def outcomes_of(
    setup: Setup, split: Split, function: EvalStep, params: Any, chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute a function's outcomes for some examples of a split, in their order.

    Args:
        setup: the run.
        split: the examples.
        function: `(params, batch) -> (sums, outcomes)`, traceable; it returns `example_ids` too.
        params: every parameter.
        chosen: the numbers of the examples.
    """
    examples, layout = split.examples, setup.layout

    def collate(index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        numbers = np.where(index >= 0, chosen[np.maximum(index, 0)], -1)
        return {**examples.collate(numbers, row_length), "example_ids": index.astype(np.int32)}

    step = make_eval_step(function, param_shardings=setup.argument_shardings, mesh=setup.mesh)
    shape = layout.rows, layout.row_length, None, layout.divide_by
    plan = plan_eval(examples.lengths[chosen], *shape)
    outcomes = [arrays for _, arrays in run_plan(setup.mesh, step, params, plan, collate)]
    return in_order(outcomes, len(chosen))


def in_order(batch_outcomes: list[dict[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Concatenate the outcomes `[R, S, ...]` of batches, in order of examples.

    An outcome whose shape differs between batches is padded with zeros.
    """
    ids = np.concatenate([part["example_ids"].ravel() for part in batch_outcomes])
    real = ids >= 0
    ordered = {}
    for name in batch_outcomes[0]:
        if name == "example_ids":
            continue
        parts = _alike([part[name].reshape(-1, *part[name].shape[2:]) for part in batch_outcomes])
        values = np.concatenate(parts)[real]
        ordered[name] = np.empty((count, *values.shape[1:]), values.dtype)
        ordered[name][ids[real]] = values
    return ordered


def _alike(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Pad arrays to equal shapes, except for their first axis."""
    most = np.max([part.shape for part in parts], axis=0)  # the first axis is not padded
    spare = [[(0, 0), *((0, end) for end in (most - part.shape)[1:])] for part in parts]
    return [np.pad(part, ends) for part, ends in zip(parts, spare, strict=True)]
