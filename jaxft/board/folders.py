"""The runs and studies below a folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxft.errors import UserError
from jaxft.runs.formats import RUN_FILE
from jaxft.runs.kinds import SET_ASIDE
from jaxft.storage import files
from jaxft.visible import visible

STUDY_FILE = "study.json"
DEEPEST = 6  # levels of folders
MOST_FOLDERS = 20_000  # that are looked into
MOST_SHOWN = 500  # runs and studies
ASIDE = re.compile(SET_ASIDE + "$")


@dataclass(frozen=True)
class Folder:
    """A run or a study.

    Attributes:
        key: what an address names it by: hexadecimal digits that stand for its path.
        name: its path below the board's folder, with control characters written out.
        path: the folder.
        is_study: whether it is a study.
    """

    key: str
    name: str
    path: Path
    is_study: bool


def check_board_folder(folder: Path) -> None:
    """Raise a UserError where there is nothing to show below a folder."""
    if files.is_bucket(folder):
        raise UserError(
            f"{folder} is in a bucket, and the board shows the runs of local folders.",
            "Make a page of one run: jaxft report RUN.",
        )
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", "Runs are made by jaxft train.")
    if not find_folders(folder):
        raise UserError(
            f"There is no run and no study below {folder}.", "Runs are made by jaxft train."
        )


def find_folders(top: Path) -> list[Folder]:
    """Return the runs and studies below a folder, or the folder itself, by name.

    Links are not followed, runs that were set aside and what is inside a run are left out.
    """
    return sorted(
        (
            Folder(
                hashlib.sha256(os.fsencode(os.path.relpath(path, top))).hexdigest()[:16],
                visible(top.resolve().name if path == top else os.path.relpath(path, top)),
                path,
                is_study,
            )
            for path, is_study in _walk(top)
        ),
        key=lambda folder: folder.name,
    )


def _walk(top: Path) -> Iterator[tuple[Path, bool]]:
    waiting, looked, shown = [(top, 0)], 0, 0
    while waiting and looked < MOST_FOLDERS and shown < MOST_SHOWN:
        path, depth = waiting.pop(0)
        looked += 1
        try:
            with os.scandir(path) as entries:
                inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        except OSError:  # gone, or not for us to read
            continue
        names = {name for name, is_folder in inside if not is_folder}
        if RUN_FILE in names or STUDY_FILE in names:
            shown += 1
            yield path, RUN_FILE not in names
        elif depth < DEEPEST:
            below = sorted(name for name, is_folder in inside if is_folder)
            waiting += [
                (path / name, depth + 1)
                for name in below
                if not name.startswith(".") and not ASIDE.search(name)
            ]
