"""Evaluation of a run's best checkpoint, on a split of the run or on other rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxft.analysis.similarity import similarity as of_depths
from jaxft.bounds import MOST_INTERPOLATIONS
from jaxft.config.data import DataSection
from jaxft.engine.evaluate import build_eval_step, evaluate
from jaxft.engine.initial_state import load_params
from jaxft.engine.setup import Setup, bind_task, build
from jaxft.engine.trained import Which, new_at_start, open_trained
from jaxft.errors import UserError
from jaxft.models.adapters.merge import merge
from jaxft.runs.leaves import finite

Params = dict[str, jax.Array]


def score(
    run: Path,
    split: str = "test",
    data: str | None = None,
    interpolate: str | None = None,
    similarity: bool = False,
    *,
    which: Which = "best",
) -> dict[str, Any]:
    """Score a checkpoint of a run, and interpolations between it and the initial parameters.

    Args:
        run: the run folder.
        split: `test`, `eval` or `train`, of the run's config.
        data: other rows with the same columns, in place of `test`.
        interpolate: `first:last:step`: weights of the checkpoint in the interpolation.
        similarity: whether to compare each depth's activations with those of the initial model.
        which: `best`, `last`, or a step.

    Returns:
        `run`, `source`, `step`, `examples` and `metrics`; with `interpolate` also `line`: the
        metrics at each `share`, and `new`: the parameters that were random at the start; with
        `similarity` also `similarity`: the alignment (CKA) of each depth, embeddings first.

    Source: WiSE-FT, Wortsman et al. (2021), https://arxiv.org/abs/2109.01903.

    Raises:
        UserError: the folder is no run, a row is invalid, or both a split and other rows are named.
    """
    shares = [] if interpolate is None else shares_of(interpolate)
    if data is not None and split != "test":
        raise UserError(
            f"--split {split} names rows of the run, and --data others.", "Leave one of them out."
        )
    trained = open_trained(run, which, spread=True)
    data_section = trained.config.data
    if data is not None:
        data_section = data_section.model_copy(update={"test": data, "where": {}})
    if split == "train":
        data_section, split = as_test_rows(data_section), "test"
    if getattr(data_section, split) is None:
        raise UserError(
            f"{run} has no {split} rows.", "Give rows with --data csv:FILE, or use --split eval."
        )
    config = trained.config.model_copy(update={"data": data_section})
    # Scored are the weights that an export has, and not how training stored the frozen ones.
    setup = replace(build(config, facts=trained.task.facts), quantized={})
    end = jax.device_put(trained.model.params, dict(setup.shardings))
    step, rows = build_eval_step(setup), setup.splits[split]
    result = evaluate(setup, step, end, rows)
    report = {
        "run": str(run),
        "source": rows.source.spec,
        "step": trained.step,
        "examples": len(rows.examples),
        "metrics": finite(result.scores),
    }
    if not (shares or similarity):
        return report
    start = load_params(setup).params
    if similarity:
        report["similarity"] = of_depths(setup, start, end, rows)
    if shares:
        if setup.model.adapted is not None:
            setup, start, end = merged(setup, start, end)
            step = build_eval_step(setup)
        report["line"] = [
            {
                "share": share,
                "metrics": finite(evaluate(setup, step, between(start, end, share), rows).scores),
            }
            for share in shares
        ]
        report["new"] = list(new_at_start(trained.run))
    return report


def merged(setup: Setup, start: Params, end: Params) -> tuple[Setup, Params, Params]:
    """Merge adapters into two sets of parameters, and return the setup of the plain model too.

    What is interpolated between them is then the effective weight, and not each factor of a
    low-rank product.

    Args:
        setup: of a run with adapters.
        start, end: parameters, on its devices.
    """
    assert setup.model.adapted is not None
    model = setup.model.plain()
    shardings = {name: setup.shardings[name] for name in model.params}
    start, end = (
        jax.device_put(merge(params, setup.model.adapted), shardings) for params in (start, end)
    )
    bound = bind_task(setup.task, setup.config, model, setup.label_names, weights=True)
    return replace(setup, model=model, bound=bound, shardings=shardings), start, end


def as_test_rows(data: DataSection) -> DataSection:
    """Return the data with the training rows as the test rows, to be read without augmentation.

    Raises:
        UserError: they come from several sources.
    """
    if not isinstance(data.train, str):
        raise UserError(
            "--split train: the run was trained on several sources.",
            f"Name one of them, as in --data {data.mixture[0].source}.",
        )
    return data.model_copy(update={"test": data.train})


def shares_of(written: str) -> list[float]:
    """Parse `first:last:step` into shares, both ends included.

    Raises:
        UserError: it is not three numbers from 0 to 1 in order, with a positive step.
    """
    try:
        first, last, step = (float(part) for part in written.split(":"))
        if not (0 <= first <= last <= 1 and 0 < step < math.inf):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--interpolate: '{written}' is not first:last:step, shares from 0 to 1.",
            "For example 0:1:0.1, where 0 is the initial model and 1 the checkpoint.",
        ) from None
    if (last - first) / step > MOST_INTERPOLATIONS:
        raise UserError(
            f"--interpolate: '{written}' has more than {MOST_INTERPOLATIONS:,} steps, and each "
            "scores all rows.",
            "Choose a larger step.",
        )
    count = int((last - first) / step + 1e-9) + 1
    shares = [round(first + number * step, 10) for number in range(count)]
    return shares if shares[-1] >= last - 1e-9 else [*shares, last]


def between(start: Params, end: Params, share: float) -> Params:
    """Interpolate linearly between parameters; shares 0 and 1 return them bit for bit."""
    if share in (0, 1):
        return end if share else start
    return {name: (1 - share) * leaf + share * end[name] for name, leaf in start.items()}
