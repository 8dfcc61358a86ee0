"""Generated images on the page: over training, and beside held-out ones."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MOST_SHEETS = 8
FOLDER = "samples"  # of the pictures drawn at each evaluation, `STEP.png`
PICTURES = ("image", "completed", "drawn")
NEEDED = ("image", "drawn")  # a model that denoises completes none
MARK = "data:image/"  # what every picture of a line begins with


def sheets(run: Path) -> list[dict[str, Any]]:
    """The pictures drawn at evaluations, `step` and `image`: the first, the last, and between.

    Args:
        run: the run's folder.
    """
    files = sorted((run / FOLDER).glob("*.png"), key=lambda file: file.stem)
    files = [file for file in files if file.stem.isdigit()]
    last, most = len(files) - 1, min(len(files), MOST_SHEETS)
    chosen = sorted({round(index * last / max(most - 1, 1)) for index in range(most)})
    return [{"step": int(files[at].stem), "image": _uri(files[at])} for at in chosen]


def _uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def drawn(split: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A split's predictions as the template shows them.

    Args:
        split: its name.
        lines: of its predictions file.

    Returns:
        `name`, `count`, `by_class` (whether images have one), and `pictures`: of the first images
        `image`, `completed` (or None), `drawn`, the class, prompt or file as `caption`, and
        `score`.
    """
    shown = [line for line in lines if all(_is_picture(line, name) for name in NEEDED)]
    return {
        "name": split,
        "count": len(lines),
        "by_class": any("label" in line for line in lines),
        "by_text": any("text" in line for line in lines),
        "completes": any("completed" in line for line in lines),
        "pictures": [
            {
                **{name: line[name] if _is_picture(line, name) else None for name in PICTURES},
                "caption": str(line.get("label") or line.get("text") or line.get("file") or ""),
                "score": _score(line),
            }
            for line in shown
        ],
    }


def _score(line: Mapping[str, Any]) -> str:
    """Return the bits per pixel of an image, or its loss."""
    for name, unit in (("bits_per_dimension", "bits per pixel"), ("loss", "loss")):
        if isinstance(line.get(name), int | float):
            return f"{line[name]:.3f} {unit}"
    return ""


def _is_picture(line: Mapping[str, Any], name: str) -> bool:
    return str(line.get(name, "")).startswith(MARK)
