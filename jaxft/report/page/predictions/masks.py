"""Images with masks on the page: the true mask and the predicted one, a color for each class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

PICTURES = ("image", "truth", "drawn")
MARK = "data:image/"  # what every picture of a line begins with
COLOR = re.compile(r"#[0-9a-f]{6}")


def masked(split: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A split's predictions as the template shows them.

    Args:
        split: its name.
        lines: of its predictions file.

    Returns:
        `name`, `count`, `colors` (class and color of those that are drawn) and `pictures`: of the
        first images `image`, `truth`, `drawn`, `file` and `iou`.
    """
    shown = [
        line for line in lines if all(str(line.get(name, "")).startswith(MARK) for name in PICTURES)
    ]
    colors = {
        str(name): color
        for line in shown
        for name, color in dict(line.get("colors") or {}).items()
        if COLOR.fullmatch(str(color))
    }
    return {
        "name": split,
        "count": len(lines),
        "colors": sorted(colors.items()),
        "pictures": [
            {
                **{name: line[name] for name in PICTURES},
                "file": str(line.get("file", "")),
                "iou": f"{line['iou']:.2f}",
            }
            for line in shown
        ],
    }
