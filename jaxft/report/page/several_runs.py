"""Several runs in one figure: labels, colors and shades that keep them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FEW = 7  # runs that the palette tells apart; more are shaded, in the order in which they were named
STOPS = ("--c0", "--c3", "--c1")  # of the shades; `drawing.js` mixes the same


def with_run_colors(figures: Sequence[dict[str, Any]], runs: int) -> list[dict[str, Any]]:
    """Figures with each line marked as the run's that it is of, whose number was its colour.

    Of more than a few runs a figure keeps one line a run: the curves of training and the mark of
    the best step would bury it.

    Args:
        figures: as `page_figures` and its like make them.
        runs: how many there are.
    """
    return [{**one, **_series_apart(one, runs)} for one in figures] if runs > 1 else [*figures]


def _series_apart(figure: Mapping[str, Any], runs: int) -> dict[str, Any]:
    series = [one | {"run": one["colour"]} if one["name"] else one for one in figure["series"]]
    if runs <= FEW:
        return {"series": series}
    named = [one for one in series if not (one["name"] and one["style"] in ("faint", "star"))]
    if not any(one["name"] for one in named):
        named = series
    by_group = figure["id"] == "rates"  # there a dash is a group
    shaded = [
        one | {"shade": one["run"] / (runs - 1)} | ({} if by_group else {"dash": "solid"})
        if one["name"]
        else one
        for one in named
    ]
    return {"series": shaded}


def run_colour(index: int, runs: int) -> str:
    """A run's colour on the page, as CSS."""
    if runs <= FEW:
        return f"var(--c{index})"
    position = index / (runs - 1) * (len(STOPS) - 1)
    low = min(int(position), len(STOPS) - 2)
    share = 100 * (position - low)
    return f"color-mix(in srgb, var({STOPS[low + 1]}) {share:.1f}%, var({STOPS[low]}))"
