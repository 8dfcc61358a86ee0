"""Text embeddings on the page: the nearest texts, and those that belong to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 24
Line = Mapping[str, Any]


def paired(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """A split's predictions as the template shows them: its first texts, and none chosen.

    Args:
        split: its name.
        lines: of its predictions file.
        before: what lay nearest before the first step; empty where no one asked.

    Returns:
        `name`, `count`, `first` and `first_before` (texts to which the nearest belongs; None where
        no one asked before) and `texts`.
    """
    earlier = {line["id"]: line for line in before}
    return {
        "name": split,
        "count": len(lines),
        "first": sum(line["before"] == 0 for line in lines),
        "first_before": sum(line["before"] == 0 for line in before) if before else None,
        "texts": [_text(line, earlier.get(line["id"])) for line in lines[:SHOWN]],
    }


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    versions = [("before", earlier)] if earlier is not None else []
    return {
        "text": line["text"],
        "positive": line["positive"],
        "said": [
            {
                "when": when,
                "before": one["before"],
                "found": [{**f, "hit": f["text"] == line["positive"]} for f in one["found"]],
            }
            for when, one in [*versions, ("after", line)]
        ],
    }
