"""Texts written from texts or images on the page: the reference, and what was generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 24
Line = Mapping[str, Any]


def written(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """A split's predictions as the template shows them: its first texts, and none chosen.

    Args:
        split: its name.
        lines: of its predictions file.
        before: what was written before the first step; empty where no one asked.

    Returns:
        `name`, `count`, `equal` and `equal_before` (texts that are what was wanted; None where no
        one asked before) and `texts`.
    """
    earlier = {line["id"]: line for line in before}
    return {
        "name": split,
        "count": len(lines),
        "equal": sum(map(_equal, lines)),
        "equal_before": sum(map(_equal, before)) if before else None,
        "texts": [_text(line, earlier.get(line["id"])) for line in lines[:SHOWN]],
    }


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    versions = [("before", earlier)] if earlier is not None else []
    return {
        "source": line.get("source") or line.get("file") or f"image {line['id']}",
        "image": line.get("image"),
        "target": line["target"],
        "said": [
            {"when": when, "written": one["written"], "equal": _equal(one)}
            for when, one in [*versions, ("after", line)]
        ],
    }


def _equal(line: Line) -> bool:
    return line["written"] == line["target"]
