"""Rows of an asset: the number by which some are held out, and the tables that they stand in."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(content: str | bytes) -> int:
    """Return the sha256 of what a row says, as a number: it depends on no other row, and on no
    place.
    """
    if isinstance(content, str):
        content = content.encode()
    return int(hashlib.sha256(content).hexdigest(), 16)


def write_csv(file: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A comma-separated file in UTF-8, whose lines end alike on every system."""
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
