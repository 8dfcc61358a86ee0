"""Texts of a split with their predictions before training and after, for the page's templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

SHOWN = 24
Line = Mapping[str, Any]


def compare(
    split: str,
    lines: Sequence[Line],
    before: Sequence[Line],
    *,
    hits: str,
    is_hit: Callable[[Line], bool],
    text: Callable[[Line, Line | None], dict[str, Any]],
) -> dict[str, Any]:
    """Count the hits of a split's predictions, and show its first texts, none selected.

    Args:
        split: its name.
        lines: of its predictions file.
        before: of the predictions before the first step; empty where none were asked for.
        hits: the name of the count.
        is_hit: whether a line's prediction is right.
        text: the content of a line and of the line before training, for the template.

    Returns:
        `name`, `count`, the hits under their name and under `<hits>_before` (None without
        `before`), and `texts`.
    """
    earlier = {line["id"]: line for line in before}
    return {
        "name": split,
        "count": len(lines),
        hits: sum(map(is_hit, lines)),
        f"{hits}_before": sum(map(is_hit, before)) if before else None,
        "texts": [text(line, earlier.get(line["id"])) for line in lines[:SHOWN]],
    }


def versions(line: Line, earlier: Line | None) -> list[tuple[str, Line]]:
    """Return the predictions of one text by when they were made: `before`, `after`."""
    return [("before", earlier), ("after", line)] if earlier is not None else [("after", line)]
