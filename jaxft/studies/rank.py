"""Ranking of a study: each member's last and best score, and settings ranked over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from jaxft.studies.members import Member
from jaxft.training.patience import is_best

RESAMPLES = 2000


def mark_rows(
    rows: Sequence[Mapping[str, Any]], metric: str, *, lower_is_better: bool
) -> list[dict[str, Any]]:
    """Mark the rows that are their member's last, and its best.

    Args:
        rows: from `train_part`, in order of steps for each member.
        metric: chooses the best.
        lower_is_better: of the metric.
    """
    marked = []
    for member in sorted({row["member"] for row in rows}):
        own = [dict(row) for row in rows if row["member"] == member]
        before: list[float | None] = []
        best = None
        for row in own:
            score = row["scores"].get(metric)
            if score is not None and is_best(score, before, lower_is_better=lower_is_better):
                best = row["step"]
            before.append(score)
        for row in own:
            marked.append(row | {"last": row is own[-1], "best": row["step"] == best})
    return marked


def rank(
    members: Sequence[Member],
    rows: Sequence[Mapping[str, Any]],
    diverged: Mapping[int, int],
    metric: str,
    tested: Mapping[int, Mapping[str, float | None]] | None = None,
    trained: Mapping[int, float] | None = None,
    *,
    lower_is_better: bool,
) -> list[dict[str, Any]]:
    """Rank the settings, best first, by the mean over seeds of the members' best scores.

    Args:
        members: of the study; those of one setting differ in seeds only.
        rows: from `mark_rows`.
        diverged: member -> the step at which it stopped; settings with such members come last.
        metric: ranks the settings.
        tested: member -> its final scores on the test rows, which do not affect the rank.
        trained: member -> the share of the steps that it was trained for; None for all of them. A
            setting that stopped earlier comes after those that went on.
        lower_is_better: of the metric.

    Returns:
        For each setting `values`, `members`, `diverged` (a count), `trained` (the share), `step`
        (of the first member's best), and `best`, `last` and, with test rows, `test`: results of
        `summarise_seeds`.
    """
    settings: dict[str, list[Member]] = {}
    for member in members:
        settings.setdefault(json.dumps(member.setting), []).append(member)
    ranked = []
    for group in settings.values():
        indices = [member.index for member in group]
        own = [row for row in rows if row["member"] in indices]
        best = [row for row in own if row["best"]]
        last = [row for row in own if row["last"]]
        ranked.append(
            {
                "values": group[0].setting,
                "members": indices,
                "trained": min((trained or {}).get(index, 1.0) for index in indices),
                "diverged": sum(index in diverged for index in indices),
                "step": best[0]["step"] if best else None,
                "best": summarise_seeds([row["scores"].get(metric) for row in best]),
                "last": summarise_seeds([row["scores"].get(metric) for row in last]),
            }
        )
        if tested:
            ranked[-1]["test"] = summarise_seeds(
                [tested.get(index, {}).get(metric) for index in indices]
            )
    sign = 1 if lower_is_better else -1

    def order(entry: Mapping[str, Any]) -> tuple[bool, float, float]:
        mean = entry["best"]["mean"]
        worth = math.inf if mean is None else sign * mean
        return entry["diverged"] > 0, -entry["trained"], worth

    return sorted(ranked, key=order)


def summarise_seeds(scores: Sequence[float | None]) -> dict[str, float | None]:
    """Compute mean, standard deviation, and the mean's 95% bootstrap interval.

    Args:
        scores: one per seed; None where it is not finite, which makes every result None.

    Returns:
        `mean`, `deviation`, `low`, `high`; the last three None of fewer than two seeds.
    """
    empty = dict.fromkeys(("mean", "deviation", "low", "high"))
    if not scores or None in scores:
        return empty
    values = np.array(scores, float)
    if len(values) == 1:
        return empty | {"mean": float(values[0])}
    resampled = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
    interval = resampled.confidence_interval
    return {
        "mean": float(values.mean()),
        "deviation": float(values.std(ddof=1)),
        "low": float(interval.low),
        "high": float(interval.high),
    }
