"""The evaluation story: a run's best checkpoint on rows of its own or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxft.engine.build import build
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.process import prepare_process
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError


def score(run: Path, split: str = "test", data: str | None = None) -> dict[str, Any]:
    """Score a run's best checkpoint.

    Args:
        run: the run folder.
        split: `test` or `eval`, of the run's config.
        data: other rows with the same columns, in place of the split.

    Returns:
        `run`, `source`, `step`, `examples` and `metrics`.

    Raises:
        UserError: it is no run, or the rows are not as they have to be.
    """
    prepare_process()
    trained = open_trained(run)
    given = trained.config.data
    if data is not None:
        given = given.model_copy(update={"test": data, "where": {}})
        split = "test"
    if getattr(given, split) is None:
        raise UserError(
            f"{run} has no {split} rows.", "Give rows with --data csv:FILE, or --split eval."
        )
    built = build(trained.config.model_copy(update={"data": given}))
    params = jax.device_put(trained.model.params, dict(built.shardings))
    found = evaluate(built, build_eval_step(built), params, built.splits[split])
    return {
        "run": str(run),
        "source": built.splits[split].source.spec,
        "step": trained.step,
        "examples": len(built.splits[split].examples),
        "metrics": found.scores,
    }
