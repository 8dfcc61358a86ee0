"""Masked words on the page: the predicted tokens, before training and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxft.report.page.predictions.compared import Line, compare, versions


def filled(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """Return the masked words of a split, as `compare` has them.

    `right` counts masked words that the likeliest token is.
    """
    return compare(split, lines, before, hits="right", is_hit=is_right, text=_text)


def is_right(line: Line) -> bool:
    """Return whether the likeliest token is the masked one."""
    return bool(line["fills"]) and line["fills"][0]["token"] == line["hidden"].lower()


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    start, stop = line["blank"]
    return {
        "head": line["text"][:start],
        "hidden": line["hidden"],
        "tail": line["text"][stop:],
        "predictions": [
            {
                "when": when,
                "right": is_right(one),
                "fills": [
                    {**fill, "hit": fill["token"] == line["hidden"].lower()}
                    for fill in one["fills"]
                ],
            }
            for when, one in versions(line, earlier)
        ],
    }
