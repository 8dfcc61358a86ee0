"""Text embeddings on the page: the nearest texts, and those that belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxft.report.page.predictions.compared import Line, compare, versions


def paired(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """Return the nearest texts of a split, as `compare` has them.

    `first` counts texts to which the nearest belongs.
    """
    return compare(split, lines, before, hits="first", is_hit=_is_nearest, text=_text)


def _is_nearest(line: Line) -> bool:
    return line["before"] == 0


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    return {
        "text": line["text"],
        "positive": line["positive"],
        "predictions": [
            {
                "when": when,
                "before": one["before"],
                "nearest": [{**f, "hit": f["text"] == line["positive"]} for f in one["found"]],
            }
            for when, one in versions(line, earlier)
        ],
    }
