"""Masked words on the page: the predicted tokens, before training and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 24
Line = Mapping[str, Any]


def filled(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """A split's predictions as the template shows them: its first texts, and none chosen.

    Args:
        split: its name.
        lines: of its predictions file.
        before: what was said of the same texts before the first step; empty where no one asked.

    Returns:
        `name`, `count`, `right` and `right_before` (hidden words that the likeliest token is;
        None where nothing was said before) and `texts`.
    """
    earlier = {line["id"]: line for line in before}
    return {
        "name": split,
        "count": len(lines),
        "right": sum(map(is_right, lines)),
        "right_before": sum(map(is_right, before)) if before else None,
        "texts": [_text(line, earlier.get(line["id"])) for line in lines[:SHOWN]],
    }


def is_right(line: Line) -> bool:
    """Return whether the likeliest token is the masked one."""
    return bool(line["fills"]) and line["fills"][0]["token"] == line["hidden"].lower()


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    start, stop = line["blank"]
    versions = [("before", earlier)] if earlier is not None else []
    return {
        "head": line["text"][:start],
        "hidden": line["hidden"],
        "tail": line["text"][stop:],
        "said": [
            {
                "when": when,
                "right": is_right(one),
                "fills": [
                    {**fill, "hit": fill["token"] == line["hidden"].lower()}
                    for fill in one["fills"]
                ],
            }
            for when, one in [*versions, ("after", line)]
        ],
    }
