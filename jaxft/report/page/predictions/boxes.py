"""Images with boxes on the page: the true boxes and the detected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST = 12


def boxed(split: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A split's predictions as the template shows them.

    Args:
        split: its name.
        lines: of its predictions file.

    Returns:
        `name`, `count`, `gold` and `detected` (boxes in all), `lowest` (score of a detected box
        that is shown), and `pictures`, the first that are drawn.
    """
    drawn = [line for line in lines if str(line.get("image", "")).startswith("data:image/")]
    return {
        "name": split,
        "count": len(lines),
        "gold": sum(len(line["gold"]) for line in lines),
        "detected": sum(len(line["objects"]) for line in lines),
        "lowest": f"{lines[0].get('lowest_score', 0.5):.3g}" if lines else "",
        "pictures": [
            {
                "image": line["image"],
                "file": str(line.get("file", "")),
                "gold": len(line["gold"]),
                "detected": len(line["objects"]),
            }
            for line in drawn[:MOST]
        ],
    }
