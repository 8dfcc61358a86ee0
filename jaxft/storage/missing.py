"""Mend for a file or folder that is not there."""

from __future__ import annotations

from pathlib import Path

from jaxft.errors import nearest

ASSETS = "assets"  # the link that `jaxft assets` makes


def mend_of_missing(path: Path) -> str:
    """Return what to do where a path is missing: fetch its asset, or correct its name."""
    top, *below = path.parts or ("",)
    if top == ASSETS and below and not Path(top, below[0]).exists():
        return f"An example config's data and checkpoints are fetched by: jaxft assets {below[0]}"
    siblings = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
    close = nearest(path.name, siblings)
    return f"Did you mean '{close[0]}'?" if close else ""
