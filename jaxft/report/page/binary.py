"""Two-class results on the page: the second class is the positive one, found by a threshold.

The curves are over all thresholds, by scikit-learn; the table has the few that a person may want.
Those are chosen on the rows that chose the best step, and counted on the rows that are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.metrics.classification import FALSE_ALARMS
from jaxft.report.page.figures import DASHES, Series, plain_series
from jaxft.report.page.run import BEFORE, Run

MOST_POINTS = 400  # a curve is thinned to so many
BINS = 10  # of the calibration curve: equally many examples each
GREY = 6  # in the page's palette
GRID = np.linspace(0.0, 1.0, 101)  # thresholds of the curve of costs


@dataclass(frozen=True)
class Scored:
    """Predicted probabilities of one split of a two-class run.

    Attributes:
        split: its name.
        chances: `[examples]` probability of the positive class.
        positive: `[examples]` bool, whether the label is the positive class.
    """

    split: str
    chances: np.ndarray
    positive: np.ndarray


def scored(run: Run) -> list[Scored]:
    """List the splits of a two-class run that the trained model was scored on, `test` first.

    Left out are splits with one class only, and the predictions from before the first step.
    """
    names = classes(run)
    splits = []
    for split, lines in run.predictions.items() if len(names) == 2 else ():
        if split == BEFORE:
            continue
        chances = np.array([line["probabilities"].get(names[1], 0.0) for line in lines])
        positive = np.array([line["label"] == names[1] for line in lines])
        if positive.any() and not positive.all():
            splits.append(Scored(split, chances, positive))
    return splits


def classes(run: Run) -> list[str]:
    """The classes that a run's predictions give probabilities for, where an example has one."""
    for lines in run.predictions.values() if run.view == "single_label" else ():
        if lines and isinstance(lines[0].get("label"), str) and "probabilities" in lines[0]:
            return list(lines[0]["probabilities"])
    return []


def binary_figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Precision over recall, ROC, calibration and, where mistakes have costs, those.

    A figure is as `page_figures` makes it, with `kind` `curve`, a `lead`, and what is on its axes.
    """
    first = [(index, run, scored(run)[:1]) for index, run in enumerate(runs)]
    shown = [(index, run, splits[0]) for index, run, splits in first if splits]
    if not shown:
        return []
    made = [
        _figure("pr", "Precision and recall", ("recall", "precision"), shown, _precision_recall),
        _figure("roc", "ROC", ("false positive rate", "true positive rate"), shown, _roc),
        _figure("calibration", "Calibration", ("predicted", "true"), shown, _calibration),
        _figure("cost", "Cost per example", ("threshold", "cost"), shown, _cost),
    ]
    wanted = classes(shown[0][1])[1] if len({classes(run)[1] for _, run, _ in shown}) == 1 else ""
    leads = {
        "pr": f"Precision against recall for {wanted or 'the class'}; dotted: prevalence.",
        "roc": "True against false positive rate; dotted: chance.",
        "calibration": "Observed frequency per predicted probability; dotted: perfect.",
        "cost": "Cost of the errors at each threshold, from task.costs.",
    }
    return [{**figure, "lead": leads[figure["id"]]} for figure in made if figure["series"]]


def _figure(
    name: str,
    title: str,
    axes: tuple[str, str],
    shown: Sequence[tuple[int, Run, Scored]],
    curve_of: Callable[..., Any],
) -> dict[str, Any]:
    series: list[Series] = []
    for index, run, split in shown:
        curve = curve_of(run, split)
        if curve is None:
            continue
        x, y, style, score = curve
        alone = len(shown) == 1
        label = f"{split.split}{score}" if alone else f"{run.name}{score}"
        dash = DASHES[index // 7 % len(DASHES)]
        series.append(plain_series(label, x, y, style, index, dash))
    if series:
        series += _by_chance(name, shown)
    return {
        "id": name,
        "kind": "curve",
        "title": title,
        "unit": ", ".join(dict.fromkeys(split.split for _, _, split in shown)),
        "format": ".3f",
        "axes": axes,
        "series": series,
    }


def _by_chance(name: str, shown: Sequence[tuple[int, Run, Scored]]) -> list[Series]:
    """The dotted line of a figure: what says nothing, or what is perfectly calibrated."""
    if name in ("roc", "calibration"):
        return [plain_series("", [0, 1], [0, 1], "faint", GREY, "dot")]
    if name == "pr":
        shares = dict.fromkeys(round(float(split.positive.mean()), 6) for _, _, split in shown)
        return [plain_series("", [0, 1], [share] * 2, "faint", GREY, "dot") for share in shares]
    return []


def _precision_recall(run: Run, split: Scored) -> tuple[list, list, str, str]:
    from sklearn import metrics

    del run
    precision, recall, _ = metrics.precision_recall_curve(split.positive, split.chances)
    average = metrics.average_precision_score(split.positive, split.chances)
    x, y = _thin(recall[::-1], precision[::-1])
    return x, y, "line", f", average precision {average:.3f}"


def _roc(run: Run, split: Scored) -> tuple[list, list, str, str]:
    from sklearn import metrics

    del run
    rest, share, _ = metrics.roc_curve(split.positive, split.chances)
    x, y = _thin(rest, share)
    return x, y, "line", f", AUROC {metrics.roc_auc_score(split.positive, split.chances):.3f}"


def _calibration(run: Run, split: Scored) -> tuple[list, list, str, str]:
    from sklearn import metrics
    from sklearn.calibration import calibration_curve

    del run
    observed, predicted = calibration_curve(
        split.positive, split.chances.clip(0, 1), n_bins=BINS, strategy="quantile"
    )
    score = metrics.brier_score_loss(split.positive, split.chances.clip(0, 1))
    return predicted.tolist(), observed.tolist(), "points", f", Brier score {score:.3f}"


def _cost(run: Run, split: Scored) -> tuple[list, list, str, str] | None:
    costs = costs_of(run)
    if costs is None:
        return None
    spent = [counted(split, threshold, costs)["cost"] for threshold in GRID]
    return GRID.tolist(), spent, "line", ""


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[list, list]:
    """At most `MOST_POINTS` of a curve's points, with both its ends."""
    points = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return x[points].tolist(), y[points].tolist()


# -------------------------------------------------------------------------------------- thresholds


def costs_of(run: Run) -> Mapping[str, float] | None:
    """`task.costs`, where the config has proper ones."""
    asked = (run.config.get("task") or {}).get("costs")
    names = ("false_alarm", "miss")
    if not isinstance(asked, Mapping):
        return None
    return asked if all(isinstance(asked.get(name), int | float) for name in names) else None


def thresholds(run: Run) -> dict[str, Any] | None:
    """The thresholds that a person may want, and what each does to the rows that are shown.

    Returns:
        `wanted` (the class), `chosen` and `shown` (names of splits), `count`, `support`, `costs`
        and `rows`: each with `criterion`, and what `counted` gives. None where there are not two
        classes.
    """
    splits = scored(run)
    if not splits:
        return None
    shown, chosen, costs = splits[0], splits[-1], costs_of(run)
    criteria = {
        "more probable class": 0.5,
        "best F1": _best(chosen, _f1),
        f"best recall at {FALSE_ALARMS:.0%} false positives": _best(chosen, _quiet_recall),
    }
    if costs is not None:
        criteria["lowest cost"] = _best(
            chosen, lambda split, at: -counted(split, at, costs)["cost"]
        )
    return {
        "wanted": classes(run)[1],
        "chosen": chosen.split,
        "shown": shown.split,
        "count": len(shown.positive),
        "support": int(shown.positive.sum()),
        "costs": costs,
        "rows": [{"criterion": name, **counted(shown, at, costs)} for name, at in criteria.items()],
    }


def counted(split: Scored, threshold: float, costs: Mapping[str, float] | None) -> dict[str, Any]:
    """Score a threshold on a split: a probability of at least that is predicted positive.

    Returns:
        `threshold`; `predicted`, the examples predicted positive; `precision`, `recall`,
        `false_positive_rate`; `cost` of an example, None without costs.
    """
    positive = split.chances >= threshold
    right = int((positive & split.positive).sum())
    predicted, support = int(positive.sum()), int(split.positive.sum())
    false_positives, missed = predicted - right, support - right
    cost = None
    if costs is not None:
        spent = costs["false_alarm"] * false_positives + costs["miss"] * missed
        cost = spent / len(split.positive)
    return {
        "threshold": float(threshold),
        "predicted": predicted,
        "precision": right / predicted if predicted else 0.0,
        "recall": right / support,
        "false_positive_rate": false_positives / (len(split.positive) - support),
        "cost": cost,
    }


def _best(split: Scored, worth: Callable[..., Any]) -> float:
    """The threshold that is worth most on a split, among the probabilities predicted there.

    Of several the middle one, between chances, so that it is not one row's own.
    """
    levels = np.unique(split.chances)
    between = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:] + 1e-6])
    if len(between) > MOST_POINTS:
        between = np.quantile(between, np.linspace(0, 1, MOST_POINTS))
    values = [worth(split, at) for at in between]
    best = np.flatnonzero(np.isclose(values, max(values), rtol=1e-12, atol=0))
    return float(between[best[len(best) // 2]])


def _f1(split: Scored, threshold: float) -> float:
    counts = counted(split, threshold, None)
    both = counts["precision"] + counts["recall"]
    return 2 * counts["precision"] * counts["recall"] / both if both else 0.0


def _quiet_recall(split: Scored, threshold: float) -> float:
    counts = counted(split, threshold, None)
    return counts["recall"] if counts["false_positive_rate"] <= FALSE_ALARMS else -1.0
