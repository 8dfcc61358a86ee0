"""The page's figures as plain data; `assets/page.js` draws them in the theme's colours.

A figure is `{id, title, unit, format, series}`, a series `{name, x, y, style, colour, dash}` with
`style` one of `line`, `points` (a line with markers), `faint` (a thin line behind) and `star`.
`colour` is a number in the page's palette; of lines in an order, `shade` is a share of the way
through it, and those that are `unlisted` are in no legend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.page.run import Run

MOST_POINTS = 1500  # a series is thinned to so many
TITLES = {
    "mcc": "Matthews correlation",
    "auroc": "AUROC",
    "recall_at_1pct_fpr": "Recall at 1% FPR",
}
MOST_LISTED = 9  # depths in a legend; of more only the first and the last
DASHES = ("solid", "dash", "dot", "dashdot")
DASH_NAMES = ("solid", "dashed", "dotted", "dashes and dots")
Series = dict[str, Any]


def figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every figure that the runs have data for, all runs in each."""
    metrics = list(dict.fromkeys(name for run in runs for name in metrics_of(run)))
    made = [_scores(runs, name) for name in ["loss", *metrics]]
    made += [
        _rates(runs),
        _depth_rates(runs),
        _training(runs, "examples_per_second", "Throughput", "examples/s"),
        _training(runs, "mfu", "Model FLOPs utilization", "share of the chips' peak"),
        _training(runs, "grad_norm", "Gradient norm", "before clipping"),
        _training(runs, "noise_scale", "Gradient noise scale", "examples"),
    ]
    return [figure for figure in made if figure["series"]]


def metrics_of(run: Run) -> list[str]:
    """The metrics that a run's evaluations report, the primary one first.

    The loss is none, and neither is what is of one class alone (`f1/person`).
    """
    names = [
        name
        for event in run.of_kind("eval")
        for name, value in event.items()
        if _is_number(value) and name not in ("step", "time", "loss", "epoch", "examples")
    ]
    names = [
        name for name in dict.fromkeys(names) if not (name.endswith("_per_second") or "/" in name)
    ]
    return sorted(names, key=lambda name: name != run.about.get("best_metric"))


def smooth(values: Sequence[float], span: float) -> list[float]:
    """The exponential mean of `values` over about `span` of them, unbiased at the start."""
    keep = span / (span + 1)
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def _scores(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """A loss or a metric: training as it goes, and each evaluation."""
    series: list[Series] = []
    alone = len(runs) == 1
    for index, run in enumerate(runs):
        dash = DASHES[index // 7 % len(DASHES)]
        steps, values = _thinned(*_points(run.of_kind("train"), name))
        if values:
            label = "train" if alone else f"{run.name}, train"
            series.append(plain_series(label, steps, values, "faint", index, dash))
            if alone and len(values) > 20:
                even = smooth(values, len(values) / 12)
                series.append(plain_series("train, smoothed", steps, even, "line", index, dash))
        splits = dict.fromkeys(str(event.get("split")) for event in run.of_kind("eval"))
        for split in splits:
            events = [event for event in run.of_kind("eval") if str(event.get("split")) == split]
            steps, values = _points(events, name)
            others = [other for other in splits if other != "eval"]
            own = 0 if split == "eval" else 1 + others.index(split)
            colour = index + 1 + own if alone else index
            label = split if alone else run.name if len(splits) == 1 else f"{run.name}, {split}"
            if values:
                series.append(plain_series(label, steps, values, "points", colour, dash))
            label = "best" if alone else f"{run.name}, best"
            series += _best(run, split, label, steps, values, colour)
    title = TITLES.get(name, name.replace("_", " ").capitalize())
    return {"id": f"score-{name}", "title": title, "unit": "", "format": ".4f", "series": series}


def _best(run: Run, split: str, label: str, steps: list, values: list, colour: int) -> list[Series]:
    """A star at the step whose parameters were kept as the best."""
    best = run.result["step"] if run.result and run.result.get("checkpoint") == "best" else None
    if split != "eval" or best not in steps:
        return []
    value = values[steps.index(best)]
    return [plain_series(label, [best], [value], "star", colour)]


def _rates(runs: Sequence[Run]) -> dict[str, Any]:
    """The rate of each group over the whole run, as it was planned."""
    series = []
    for index, run in enumerate(runs):
        if run.rates is None:
            continue
        for column, group in enumerate(run.rates["groups"]):
            values = [row[column] for row in run.rates["rates"]]
            alone = len(runs) == 1
            series.append(
                plain_series(
                    group if alone else f"{run.name}, {group}",
                    run.rates["steps"],
                    values,
                    "line",
                    group_colour(run, group) if alone else index,
                    "solid" if alone else DASHES[column % len(DASHES)],
                )
            )
    unit = "" if len(runs) == 1 else _dash_key(runs)
    title = "Learning rate by group"
    return {"id": "rates", "title": title, "unit": unit, "format": ".2e", "series": series}


def _depth_rates(runs: Sequence[Run]) -> dict[str, Any]:
    """The fan: the rate of each depth's fastest parameter, of one run whose depths differ."""
    series: list[Series] = []
    rates = runs[0].rates or {}
    depths, rows = rates.get("depths", []), rates.get("by_depth", [])
    if len(runs) == 1 and any(max(row) != min(row) for row in rows):
        last = len(depths) - 1
        for index, depth in enumerate(depths):
            line = plain_series(
                f"depth {depth}", rates["steps"], [row[index] for row in rows], "line"
            )
            unlisted = len(depths) > MOST_LISTED and 0 < index < last
            series.append({**line, "shade": index / last, "unlisted": unlisted})
    title, unit = "Learning rate by depth", "of each depth's fastest parameter"
    return {"id": "depth-rates", "title": title, "unit": unit, "format": ".2e", "series": series}


def _dash_key(runs: Sequence[Run]) -> str:
    """Which dash is which group, where the runs' groups agree and colours are taken by the runs."""
    groups = [tuple(run.rates["groups"]) for run in runs if run.rates]
    if len(set(groups)) != 1 or len(groups[0]) > len(DASHES):
        return ""
    return ", ".join(f"{name} {dash}" for name, dash in zip(groups[0], DASH_NAMES, strict=False))


def group_colour(run: Run, group: str) -> int:
    """A group's colour on the page: its place among the run's groups."""
    names = [entry["name"] for entry in run.table["groups"]] if run.table else []
    return names.index(group) if group in names else len(names)


def _training(runs: Sequence[Run], name: str, title: str, unit: str) -> dict[str, Any]:
    """One value of the training events, from zero up."""
    series = []
    for index, run in enumerate(runs):
        steps, values = _thinned(*_points(run.of_kind("train"), name))
        if values:
            dash = DASHES[index // 7 % len(DASHES)]
            series.append(plain_series(run.name, steps, values, "line", index, dash))
    figure = {"id": name, "title": title, "unit": unit, "format": ",.3~r", "series": series}
    return {**figure, "from_zero": True}


def plain_series(
    name: str, x: list, y: list, style: str, colour: int = 0, dash: str = "solid"
) -> Series:
    """A series of a figure; without a name it is in no legend."""
    return {"name": name, "x": x, "y": y, "style": style, "colour": colour, "dash": dash}


def _points(events: Sequence[Mapping[str, Any]], name: str) -> tuple[list, list]:
    numeric = [event for event in events if _is_number(event.get(name))]
    return [event["step"] for event in numeric], [event[name] for event in numeric]


def _thinned(steps: list, values: list) -> tuple[list, list]:
    """At most `MOST_POINTS`: each stands for its neighbours, by their mean."""
    stride = -(-len(steps) // MOST_POINTS)
    if stride <= 1:
        return steps, values
    starts = range(0, len(steps), stride)
    chunks = [values[start : start + stride] for start in starts]
    return [steps[start] for start in starts], [sum(chunk) / len(chunk) for chunk in chunks]


def _is_number(value: Any) -> bool:
    return numbers.is_finite(value)
