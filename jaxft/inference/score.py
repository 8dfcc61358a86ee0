"""The evaluation story: a run's best checkpoint on rows of its own or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxft.analysis.similarity import similarity as of_depths
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import build
from jaxft.engine.trained import new_at_start, open_trained
from jaxft.errors import UserError

Params = dict[str, jax.Array]


def score(
    run: Path,
    split: str = "test",
    data: str | None = None,
    interpolate: str | None = None,
    similarity: bool = False,
) -> dict[str, Any]:
    """Score a run's best checkpoint, or what lies on the line to it from where it started.

    Args:
        run: the run folder.
        split: `test` or `eval`, of the run's config.
        data: other rows with the same columns, in place of the split.
        interpolate: `first:last:step`, shares of the way from the start to the checkpoint.
        similarity: compare what each depth says of the rows with what it said at the start.

    Returns:
        `run`, `source`, `step`, `examples` and `metrics`; with `interpolate` also `line`: the
        metrics at each `share`, and `new`: the parameters that were random at the start; with
        `similarity` also that: the alignment (CKA) of each depth, embeddings first.

    Source: WiSE-FT, Wortsman et al. (2021), https://arxiv.org/abs/2109.01903.

    Raises:
        UserError: it is no run, or the rows are not as they have to be.
    """
    shares = [] if interpolate is None else shares_of(interpolate)
    trained = open_trained(run)
    given = trained.config.data
    if data is not None:
        given = given.model_copy(update={"test": data, "where": {}})
        split = "test"
    if getattr(given, split) is None:
        raise UserError(
            f"{run} has no {split} rows.", "Give rows with --data csv:FILE, or --split eval."
        )
    setup = build(trained.config.model_copy(update={"data": given}))
    end = jax.device_put(trained.model.params, dict(setup.shardings))
    step, rows = build_eval_step(setup), setup.splits[split]
    found = evaluate(setup, step, end, rows)
    told = {
        "run": str(run),
        "source": rows.source.spec,
        "step": trained.step,
        "examples": len(rows.examples),
        "metrics": found.scores,
    }
    if not (shares or similarity):
        return told
    start = load_params(setup).params
    if similarity:
        told["similarity"] = of_depths(setup, start, end, rows)
    if shares:
        told["line"] = [
            {
                "share": share,
                "metrics": evaluate(setup, step, between(start, end, share), rows).scores,
            }
            for share in shares
        ]
        told["new"] = list(new_at_start(trained.run))
    return told


def shares_of(written: str) -> list[float]:
    """The shares that `first:last:step` names, both ends in.

    Raises:
        UserError: it is not three numbers from 0 to 1, or the step leads nowhere.
    """
    try:
        first, last, step = (float(part) for part in written.split(":"))
        if not (0 <= first <= last <= 1 and step > 0):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--interpolate: '{written}' is not first:last:step, shares from 0 to 1.",
            "Such as 0:1:0.1; 0 is where the run started, 1 its checkpoint.",
        ) from None
    count = int((last - first) / step + 1e-9) + 1
    return [round(first + number * step, 10) for number in range(count)]


def between(start: Params, end: Params, share: float) -> Params:
    """Parameters on the line from one set to another; its ends are those sets to the bit."""
    if share in (0, 1):
        return end if share else start
    return {name: (1 - share) * leaf + share * end[name] for name, leaf in start.items()}
