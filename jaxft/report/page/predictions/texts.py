"""Texts written from texts or images on the page: the reference, and what was generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxft.report.page.predictions.compared import Line, compare, versions


def written(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """Return the generated texts of a split, as `compare` has them.

    `equal` counts texts that equal the reference.
    """
    return compare(split, lines, before, hits="equal", is_hit=_equal, text=_text)


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    return {
        "source": line.get("source") or line.get("file") or f"image {line['id']}",
        "image": line.get("image"),
        "target": line["target"],
        "predictions": [
            {"when": when, "written": one["written"], "equal": _equal(one)}
            for when, one in versions(line, earlier)
        ],
    }


def _equal(line: Line) -> bool:
    return line["written"] == line["target"]
