"""Classes or numbers predicted for each example on the page: how often right, and where not.

A line of a predictions file has a `label` and what was `predicted`: a class each, lists of them
where several may stand together, or numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.page.figures import plain_series
from jaxft.report.page.run import Run

WORST = 20
MOST_CLASSES = 40  # of more there is no confusion matrix and no table
MOST_DOTS = 2000
Line = Mapping[str, Any]


def split_view(split: str, lines: Sequence[Line]) -> dict[str, Any]:
    """A split's predictions as the template shows them.

    Returns:
        `name`, `count`, `wrong`, `confusion`, `classes` and `worst`; `wrong` is None of numbers,
        which are all more or less wrong.
    """
    numeric = bool(lines) and isinstance(lines[0]["label"], int | float)
    return {
        "name": split,
        "count": len(lines),
        "wrong": None if numeric else sum(line["predicted"] != line["label"] for line in lines),
        "confusion": confusion(lines),
        "classes": [] if numeric else by_class(lines),
        "worst": worst_mistakes(lines),
    }


def number_figures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Predicted over true, of the runs that tell a number; a figure as in `page_binary`."""
    series, splits = [], []
    for index, run in enumerate(runs):
        for split, lines in [*run.predictions.items()][:1]:
            if lines and isinstance(lines[0].get("label"), int | float):
                thinned = lines[:: -(-len(lines) // MOST_DOTS)]
                x, y = ([float(line[key]) for line in thinned] for key in ("label", "predicted"))
                series.append(plain_series(run.name, x, y, "dots", index))
                splits.append(split)
    if not series:
        return []
    ends = [min(min(one["x"]) for one in series), max(max(one["x"]) for one in series)]
    return [
        {
            "id": "numbers",
            "kind": "curve",
            "title": "Predicted over true",
            "unit": ", ".join(dict.fromkeys(splits)),
            "format": ".4~g",
            "axes": ("true", "predicted"),
            "lead": "One dot per example; on the dotted line the prediction is exact.",
            "series": [*series, plain_series("", ends, ends, "faint", 6, "dot")],
        }
    ]


def confusion(predictions: Sequence[Line]) -> dict[str, Any] | None:
    """Counts of true label x predicted label; None of too many labels, of several, of numbers.

    Args:
        predictions: the lines of a predictions file.
    """
    if not all(isinstance(line["label"], str) for line in predictions):
        return None
    pairs = Counter((line["label"], line["predicted"]) for line in predictions)
    names = _names(predictions)
    if len(names) > MOST_CLASSES:
        return None
    rows = []
    for label in names:
        total = sum(pairs[label, name] for name in names)
        cells = [(pairs[label, name], pairs[label, name] / max(total, 1)) for name in names]
        rows.append({"label": label, "cells": cells, "total": total})
    return {"names": names, "rows": rows}


def by_class(predictions: Sequence[Line]) -> list[dict[str, Any]]:
    """Score each class: `name`, `support`, `predicted`, `precision`, `recall`, `f1`.

    Args:
        predictions: the lines of a predictions file; empty of more than `MOST_CLASSES`.
    """
    names = _names(predictions)
    rows = []
    for name in names if len(names) <= MOST_CLASSES else ():
        there = [name in _set(line["label"]) for line in predictions]
        predicted = [name in _set(line["predicted"]) for line in predictions]
        right = sum(a and b for a, b in zip(there, predicted, strict=True))
        rows.append(
            {
                "name": name,
                "support": sum(there),
                "predicted": sum(predicted),
                "precision": right / sum(predicted) if any(predicted) else 0.0,
                "recall": right / sum(there) if any(there) else 0.0,
                "f1": 2 * right / (sum(there) + sum(predicted))
                if any(there) or any(predicted)
                else 0.0,
            }
        )
    return rows


def worst_mistakes(predictions: Sequence[Line]) -> list[dict[str, Any]]:
    """The wrong predictions with the highest loss, the worst first."""
    wrong = [line for line in predictions if line["predicted"] != line["label"]]
    worst = sorted(wrong, key=lambda line: -line["loss"])[:WORST]
    shown = []
    for line in worst:
        chances = line.get("probabilities") or {}
        sure = chances.get(line["predicted"]) if isinstance(line["predicted"], str) else None
        shown.append(
            {
                **dict.fromkeys(("text", "file")),
                **line,
                "label": _words(line["label"]),
                "predicted": _words(line["predicted"]),
                **{key: _drawn(line.get(key)) for key in ("image", "attention")},
                "sure": None if sure is None else float(sure),
            }
        )
    return shown


def _drawn(picture: str | None) -> str | None:
    """A picture that the page itself holds: nothing is loaded."""
    return picture if (picture or "").startswith("data:image/") else None


def _names(predictions: Sequence[Line]) -> list[str]:
    """The classes, in the order of the first line's probabilities."""
    names = dict.fromkeys(name for line in predictions for name in line.get("probabilities") or {})
    more = {
        name for line in predictions for key in ("label", "predicted") for name in _set(line[key])
    }
    return [*names, *sorted(more - set(names))]


def _set(label: Any) -> set[str]:
    return {label} if isinstance(label, str) else set(label) if isinstance(label, list) else set()


def _words(label: Any) -> str:
    if isinstance(label, list):
        return ", ".join(label) or "none"
    return label if isinstance(label, str) else numbers.score(label)
