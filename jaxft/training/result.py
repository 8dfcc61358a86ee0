"""End of a run: the test rows scored with the best checkpoint, or the reason for stopping."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import jax
from PIL import Image
from rich.console import Console

from jaxft.analysis.answers import answers
from jaxft.analysis.attention_maps import with_attention
from jaxft.analysis.baselines import baselines
from jaxft.analysis.eval_embeddings import eval_embeddings
from jaxft.device.distributed import is_first
from jaxft.engine.evaluate import EvalStep, Evaluation, Interrupted, evaluate, predictions
from jaxft.engine.initial_state import load_params
from jaxft.engine.inputs import Split
from jaxft.engine.setup import Setup
from jaxft.engine.trained import write_lines
from jaxft.errors import UserError
from jaxft.report.events import EventLog
from jaxft.report.terminal.progress import Progress
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RunFolder
from jaxft.runs.leaves import finite
from jaxft.storage.files import write_atomic

RESULT = "result.json"
SAMPLES = "samples"  # the folder of the images generated at each evaluation
# Evaluations in the event log and files in the folder, before the first step and after the last.
BEFORE, AFTER = "before", "after"


def score_before(
    setup: Setup,
    run: RunFolder,
    log: EventLog,
    eval_step: EvalStep,
    params: dict[str, jax.Array],
    progress: Progress,
    interrupted: Callable[[], bool],
) -> None:
    """Score the eval rows with the initial parameters, if `report.before` asks for it.

    Nothing is written if a signal comes meanwhile: the loop then ends the run.
    """
    if not setup.config.report.before:
        return
    split = setup.splits["eval"]
    progress.doing(f"scoring {len(split.examples):,} eval rows before the first step")
    try:
        evaluation = evaluate(setup, eval_step, params, split, interrupted)
    except Interrupted:
        return
    log.eval(0, BEFORE, evaluation.scores)
    progress.evaluation(0, evaluation.scores, best=False)
    write_lines(run, f"predictions-{BEFORE}.jsonl", predictions(setup.bound, split, evaluation))
    _write_views(setup, run, BEFORE, params)
    write_evaluation(setup, run, evaluation, 0, best=False)


def write_evaluation(
    setup: Setup, run: RunFolder, evaluation: Evaluation, step: int, *, best: bool
) -> None:
    """Write the predictions if the evaluation is the best so far, and any generated images.

    The images of an evaluation are one sheet, `samples/STEP.png`.
    """
    if best:
        lines = predictions(setup.bound, setup.splits["eval"], evaluation)
        write_lines(run, "predictions-eval.jsonl", lines)
    sheet = setup.bound.sample_sheet(evaluation.outcomes, setup.splits["eval"].examples)
    if sheet is not None and is_first():
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "PNG")
        write_atomic(run.path / SAMPLES / f"{step:08d}.png", file.getvalue())


def scored_split(setup: Setup) -> Split:
    """Return the rows that the best checkpoint is scored on: test, or else eval."""
    return setup.splits["test" if "test" in setup.splits else "eval"]


def final_result(
    setup: Setup,
    run: RunFolder,
    checkpoints: Checkpoints,
    eval_step: EvalStep,
    frozen: dict[str, jax.Array],
    console: Console,
) -> dict[str, Any]:
    """Score the test rows with the best checkpoint; a run without test rows repeats its best."""
    best = checkpoints.best()
    step = checkpoints.resolve("last") if best is None else best
    split = scored_split(setup)
    name = split.name
    if (run.path / RESULT).exists():
        scored = run.read_json(RESULT)
        if (scored["step"], scored["fingerprint"]) == (step, split.source.fingerprint):
            return scored
    console.print(f"Scoring {len(split.examples):,} {name} rows with step {step:,}.")
    params = {**frozen, **checkpoints.load_params(step, setup.shardings)}
    if params.keys() != setup.shardings.keys():  # the best is of a phase before some began to train
        start = load_params(setup).params
        params = {name: params.get(name, leaf) for name, leaf in start.items()}
    evaluation = evaluate(setup, eval_step, params, split)
    lines = with_attention(setup, params, split, predictions(setup.bound, split, evaluation))
    write_lines(run, f"predictions-{name}.jsonl", lines)
    simple = baselines(setup.bound, setup.splits["train"], split) if is_first() else {}
    result = {
        "split": name,
        "step": step,
        "checkpoint": "last" if best is None else "best",
        "metrics": finite(evaluation.scores),
        "examples": len(split.examples),
        "fingerprint": split.source.fingerprint,
        "warnings": setup.bound.warnings(evaluation.outcomes, split.examples),
        **({"baselines": simple} if simple else {}),
    }
    if setup.config.report.before:
        _write_views(setup, run, AFTER, params)
    run.write_json(RESULT, result)
    return result


def _write_views(setup: Setup, run: RunFolder, when: str, params: dict[str, jax.Array]) -> None:
    """Write embeddings and answers on the eval rows, for tasks that show them."""
    embeddings = eval_embeddings(setup, params)
    if embeddings is not None:
        run.write_json(f"embeddings-{when}.json", embeddings)
    answered = answers(setup, params)
    if answered:
        run.write_json(f"answers-{when}.json", answered)


class DivergedError(UserError):
    """Training that ended because its loss or gradients were not finite."""


def not_finite(run: RunFolder, checkpoints: Checkpoints, step: int, count: int) -> DivergedError:
    """Make the error of a run whose loss is not finite, with its last good state.

    Args:
        run, checkpoints: the run's.
        step: steps done.
        count: consecutive steps that were not finite; 0 where it is the loss on the eval rows.
    """
    checkpoints.wait()
    run.update(state="failed")
    latest = checkpoints.latest()
    good = f"checkpoint {latest} in {checkpoints.folder}" if latest else "its starting point"
    losses = f"loss or its gradient was not finite in {count} consecutive steps, up to step {step}"
    if not count:
        losses = f"loss on the eval rows was not finite after step {step}"
    return DivergedError(
        f"The {losses}; the last good state is {good}.",
        "Lower optimizer.lr or lengthen schedule.warmup.",
    )
