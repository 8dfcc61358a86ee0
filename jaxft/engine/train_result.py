"""How a run ends: the test rows scored once with the best checkpoint, or the reason it stopped."""

from __future__ import annotations

from typing import Any

import jax
from rich.console import Console

from jaxft.engine.build import Build
from jaxft.engine.build_state import load_params
from jaxft.engine.checkpoint import Checkpoints
from jaxft.engine.evaluate import EvalStep, evaluate, predictions
from jaxft.engine.run_folder import RunFolder
from jaxft.engine.trained import base_checkpoint, write_lines
from jaxft.errors import UserError


def final_result(
    built: Build,
    run: RunFolder,
    checkpoints: Checkpoints,
    eval_step: EvalStep,
    frozen: dict[str, jax.Array],
    console: Console,
) -> dict[str, Any]:
    """Score the test rows with the best checkpoint; a run without test rows repeats its best."""
    best = checkpoints.best()
    step = checkpoints.resolve("last") if best is None else best
    name = "test" if "test" in built.splits else "eval"
    split = built.splits[name]
    if (run.path / "result.json").exists():
        scored = run.read_json("result.json")
        if (scored["step"], scored["fingerprint"]) == (step, split.source.fingerprint):
            return scored
    console.print(f"Scoring {len(split.examples):,} {name} rows with step {step:,}.")
    params = {**frozen, **checkpoints.load_params(step, built.shardings)}
    if params.keys() != built.shardings.keys():  # the best is of a phase before some began to train
        start = load_params(built, base_checkpoint(run, built.config)).params
        params = {name: params.get(name, leaf) for name, leaf in start.items()}
    found = evaluate(built, eval_step, params, split)
    write_lines(run, f"predictions-{name}.jsonl", predictions(built, split, found))
    result = {
        "split": name,
        "step": step,
        "checkpoint": "last" if best is None else "best",
        "metrics": found.scores,
        "examples": len(split.examples),
        "fingerprint": split.source.fingerprint,
    }
    run.write_json("result.json", result)
    return result


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
