"""Files of an asset: tables of rows, the hash by which some are held out, and JSON."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest(content: str | bytes) -> int:
    """Return the sha256 of a row as a number, which depends on nothing else."""
    if isinstance(content, str):
        content = content.encode()
    return int(hashlib.sha256(content).hexdigest(), 16)


def write_csv(file: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a comma-separated file in UTF-8, with the same line ends on every system."""
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def write_json(file: Path, content: Any) -> None:
    """Write one of a checkpoint's JSON files; its folder is made where it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
