"""The eval rows as points of a plane before training and after, one color a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from operator import eq
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.page.figures import Series, plain_series
from jaxft.report.page.run import Run

NAMED = 12  # classes; of more the rarest are one
GREY = 6  # in the page's palette
TITLES = {"before": "Before the first step", "after": "After training"}
SYMBOLS = ("circle", "diamond", "square")  # where there are more classes than colours


def embedding_figures(run: Run) -> list[dict[str, Any]]:
    """The scatters of a run that has both; figures as in `page_binary`, their kind `scatter`."""
    if run.embeddings.keys() != TITLES.keys():
        return []
    return [_scatter(when, points) for when, points in run.embeddings.items()]


def _scatter(when: str, points: dict[str, Any]) -> dict[str, Any]:
    counts = Counter(points["labels"])
    common = {name for name, _ in counts.most_common(NAMED if len(counts) > NAMED else None)}
    names = sorted(common)
    series: list[Series] = []
    for index, name in enumerate(names):
        x, y = _of(points, partial(eq, name))
        shape = {"symbol": SYMBOLS[index // GREY % len(SYMBOLS)]}
        series.append(plain_series(name, x, y, "dots", index % GREY) | shape)
    if len(counts) > len(names):
        x, y = _of(points, lambda label: label not in common)
        series.insert(0, plain_series(f"{len(counts) - len(names)} others", x, y, "dots", GREY))
    shares = [numbers.share(share) for share in points["explained"]]
    lead = (
        f"{numbers.share(points['alike'])} have a nearest neighbor of their own class; by chance "
        f"{numbers.share(points['guessing'])}."
    )
    return {
        "id": f"embeddings-{when}",
        "kind": "scatter",
        "title": TITLES[when],
        "unit": f"{len(points['labels']):,} of the eval rows",
        "format": ".3~g",
        "axes": tuple(f"component {n} ({share})" for n, share in enumerate(shares, 1)),
        "lead": lead,
        "series": series,
    }


def _of(points: dict[str, Any], wanted: Callable[[Any], bool]) -> tuple[list, list]:
    """The points whose label is wanted."""
    inside = [index for index, label in enumerate(points["labels"]) if wanted(label)]
    return [points["x"][index] for index in inside], [points["y"][index] for index in inside]
