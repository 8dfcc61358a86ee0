"""Texts and images in one space on the page: the images that a text retrieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]


def has_images(lines: Sequence[Line]) -> bool:
    """Return whether the lines list the images that their texts retrieve; older runs do not."""
    return any(line.get("images") for line in lines)


def searched(split: str, lines: Sequence[Line], before: Sequence[Line]) -> dict[str, Any]:
    """A split's predictions as the template shows them: its first texts, and none chosen.

    Args:
        split: its name.
        lines: of its predictions file.
        before: what each text retrieved before the first step; empty where it was not asked.

    Returns:
        `name`, `count` and `texts`: those of the lines that list the images retrieved.
    """
    earlier = {line["id"]: line for line in before}
    return {
        "name": split,
        "count": len(lines),
        "texts": [_text(line, earlier.get(line["id"])) for line in lines if line.get("images")],
    }


def _text(line: Line, earlier: Line | None) -> dict[str, Any]:
    versions = [("before", earlier)] if earlier is not None else []
    return {
        "text": line["text"],
        "image": line.get("image"),
        "predictions": [
            {"when": when, "before": one.get("images_before"), "nearest": one.get("images") or ()}
            for when, one in [*versions, ("after", line)]
        ],
    }
