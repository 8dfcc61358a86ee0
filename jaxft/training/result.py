"""How a run ends: the test rows scored once with the best checkpoint, or the reason it stopped."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import jax
from PIL import Image
from rich.console import Console

from jaxft.analysis.answers import answers
from jaxft.analysis.attention_maps import with_attention
from jaxft.analysis.eval_embeddings import eval_embeddings
from jaxft.device.distributed import is_first
from jaxft.engine.evaluate import EvalStep, Evaluation, Interrupted, evaluate, predictions
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import Setup
from jaxft.engine.trained import write_lines
from jaxft.errors import UserError
from jaxft.report.events import EventLog
from jaxft.report.terminal.progress import Progress
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RunFolder
from jaxft.storage.files import write_atomic

SAMPLES = "samples"  # the folder of the pictures drawn at each evaluation
BEFORE = "before"  # of the evaluations in the diary, and of the predictions in the folder
AFTER = "after"


def score_before(
    setup: Setup,
    run: RunFolder,
    log: EventLog,
    eval_step: EvalStep,
    params: dict[str, jax.Array],
    progress: Progress,
    interrupted: Callable[[], bool],
) -> None:
    """Score the eval rows with what the run starts from, where `report.before` asks for it.

    Nothing is written where a signal comes meanwhile: the loop ends the run then.
    """
    if not setup.config.report.before:
        return
    split = setup.splits["eval"]
    progress.doing(f"scoring {len(split.examples):,} eval rows before the first step")
    try:
        found = evaluate(setup, eval_step, params, split, interrupted)
    except Interrupted:
        return
    log.eval(0, BEFORE, found.scores)
    progress.evaluation(0, found.scores, best=False)
    write_lines(run, f"predictions-{BEFORE}.jsonl", predictions(setup.bound, split, found))
    _write_views(setup, run, BEFORE, params)
    write_evaluation(setup, run, found, 0, best=False)


def write_evaluation(
    setup: Setup, run: RunFolder, found: Evaluation, step: int, *, best: bool
) -> None:
    """Keep what was said of the eval rows where it is the best so far, and what was drawn anyway.

    All that was drawn is one picture, `samples/STEP.png`.
    """
    if best:
        lines = predictions(setup.bound, setup.splits["eval"], found)
        write_lines(run, "predictions-eval.jsonl", lines)
    drawn = setup.bound.sample_sheet(found.outcomes, setup.splits["eval"].examples)
    if drawn is not None and is_first():
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, "PNG")
        write_atomic(run.path / SAMPLES / f"{step:08d}.png", file.getvalue())


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
    name = "test" if "test" in setup.splits else "eval"
    split = setup.splits[name]
    if (run.path / "result.json").exists():
        scored = run.read_json("result.json")
        if (scored["step"], scored["fingerprint"]) == (step, split.source.fingerprint):
            return scored
    console.print(f"Scoring {len(split.examples):,} {name} rows with step {step:,}.")
    params = {**frozen, **checkpoints.load_params(step, setup.shardings)}
    if params.keys() != setup.shardings.keys():  # the best is of a phase before some began to train
        start = load_params(setup).params
        params = {name: params.get(name, leaf) for name, leaf in start.items()}
    found = evaluate(setup, eval_step, params, split)
    lines = with_attention(setup, params, split, predictions(setup.bound, split, found))
    write_lines(run, f"predictions-{name}.jsonl", lines)
    result = {
        "split": name,
        "step": step,
        "checkpoint": "last" if best is None else "best",
        "metrics": found.scores,
        "examples": len(split.examples),
        "fingerprint": split.source.fingerprint,
    }
    if setup.config.report.before:
        _write_views(setup, run, AFTER, params)
    run.write_json("result.json", result)
    return result


def _write_views(setup: Setup, run: RunFolder, when: str, params: dict[str, jax.Array]) -> None:
    """Write down where the eval rows lie and what is answered, of a task that has it to show."""
    found = eval_embeddings(setup, params)
    if found is not None:
        run.write_json(f"embeddings-{when}.json", found)
    answered = answers(setup, params)
    if answered:
        run.write_json(f"answers-{when}.json", answered)


def not_finite(run: RunFolder, checkpoints: Checkpoints, step: int, count: int) -> UserError:
    """Why a run stops whose loss stays not finite, and where its last good state is."""
    checkpoints.wait()
    run.update(state="failed")
    kept = checkpoints.latest()
    good = f"checkpoint {kept} in {checkpoints.folder}" if kept else "its starting point"
    return UserError(
        f"The loss or its gradient was not finite in {count} steps in a row, up to step {step}; "
        f"the last good state is {good}.",
        "Lower optimizer.lr or lengthen schedule.warmup.",
    )
