"""Where the eval rows lay before training and after: points of a plane, a colour a class."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jaxft import numbers
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
    return [_scatter(when, found) for when, found in run.embeddings.items()]


def _scatter(when: str, found: dict[str, Any]) -> dict[str, Any]:
    counts = Counter(found["labels"])
    common = {name for name, _ in counts.most_common(NAMED if len(counts) > NAMED else None)}
    names = sorted(common)
    series: list[Series] = []
    for place, name in enumerate(names):
        x, y = _of(found, lambda label, name=name: label == name)
        shape = {"symbol": SYMBOLS[place // GREY % len(SYMBOLS)]}
        series.append(plain_series(name, x, y, "dots", place % GREY) | shape)
    if len(counts) > len(names):
        x, y = _of(found, lambda label: label not in common)
        series.insert(0, plain_series(f"{len(counts) - len(names)} others", x, y, "dots", GREY))
    shares = [numbers.share(share) for share in found["explained"]]
    lead = (
        f"{numbers.share(found['alike'])} have one of their own kind as the nearest; by chance "
        f"{numbers.share(found['guessing'])}."
    )
    return {
        "id": f"embeddings-{when}",
        "kind": "scatter",
        "title": TITLES[when],
        "unit": f"{len(found['labels']):,} of the eval rows",
        "format": ".3~g",
        "axes": tuple(f"component {n} ({share})" for n, share in enumerate(shares, 1)),
        "lead": lead,
        "series": series,
    }


def _of(found: dict[str, Any], wanted) -> tuple[list, list]:
    """The points whose label is wanted."""
    inside = [place for place, label in enumerate(found["labels"]) if wanted(label)]
    return [found["x"][place] for place in inside], [found["y"][place] for place in inside]
