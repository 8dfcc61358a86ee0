"""The folder of a study: made, locked, resumed, replaced; its table as Parquet.

`study.json` makes a folder a study. What a part of it found lies in `parts/N.json`, written whole
when the part is through: a resumed study trains the parts that have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jax
import pyarrow
import pyarrow.parquet
from etils import epath

from jaxft.errors import UserError
from jaxft.runs.folder import RunFolder, run_path
from jaxft.storage import files
from jaxft.storage.buckets import check_bucket

STUDY_FILE = "study.json"
TABLE_FILE = "study.parquet"
LOCK_FILE = "study.lock"
PARTS = "parts"


class StudyFolder:
    """A study's folder; used in a `with` block it is locked until the block ends.

    Attributes:
        path: the folder.
        replaces: the study that it replaces, set aside under this path until `discard_old`.
    """

    def __init__(self, path: epath.PathLike, replaces: epath.Path | None = None):
        self.path = epath.Path(path)
        self.replaces = replaces
        self._files = RunFolder(self.path)
        self._held = contextlib.ExitStack()

    def __enter__(self) -> StudyFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def lock(self) -> None:
        """Keep other processes out."""
        self._held.enter_context(files.lock(self.path / LOCK_FILE))

    def about(self) -> dict[str, Any]:
        """The content of `study.json`."""
        return self._files.read_json(STUDY_FILE)

    def update(self, **facts: Any) -> None:
        """Adds facts to `study.json`; the others stay."""
        before = self.about() if (self.path / STUDY_FILE).exists() else {}
        self._files.write_json(STUDY_FILE, {**before, **facts})

    def write_part(self, index: int, found: Mapping[str, Any]) -> None:
        """Keep what a part found."""
        self._files.write_json(f"{PARTS}/{index}.json", found)

    def part(self, index: int) -> dict[str, Any] | None:
        """What a part found; None where it is not through."""
        name = f"{PARTS}/{index}.json"
        return self._files.read_json(name) if (self.path / name).exists() else None

    def write_table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `study.parquet`.

        Args:
            rows: mappings of the same keys; what is no number, text or truth is written as JSON.
        """
        columns = {name: _column([row.get(name) for row in rows]) for name in _names(rows)}
        with files.written_aside(self.path / TABLE_FILE) as aside:
            pyarrow.parquet.write_table(pyarrow.table(columns), str(aside))

    def write_text(self, name: str, text: str) -> None:
        """Write one of the folder's files whole, or not at all."""
        files.write_atomic(self.path / name, text)

    def discard_old(self) -> None:
        """Delete the study that this one replaced."""
        if self.replaces is not None and (self.replaces / STUDY_FILE).exists():
            self.replaces.rmtree()
        self.replaces = None


def check_study(name: str, dir: epath.PathLike, *, resume: bool, overwrite: bool) -> bool:
    """Whether there is a study to go on with; touches nothing.

    Args:
        name: the study's name.
        dir: the folder that holds runs.
        resume: go on with the study that is there, or start it where there is none.
        overwrite: replace the study that is there.

    Raises:
        UserError: the folder holds something, and the flags do not say what to do with it.
    """
    path = run_path(name, dir)
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other.", "Give one of them.")
    check_bucket(path)
    if (path / STUDY_FILE).exists():
        if not resume and not overwrite:
            raise UserError(
                f"{path} already holds a study.",
                "Add --resume to go on with it, --overwrite to replace it, or set --name.",
            )
        if overwrite:
            files.check_no_link(path)
        return resume
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file.", "Set --name or run.dir.")
    left = {LOCK_FILE, f"{LOCK_FILE}.owner", STUDY_FILE}  # by a kill, whole or half-written
    if files.names_in(path) - left:
        raise UserError(
            f"{path} is not empty and holds no study (it has no {STUDY_FILE}).",
            "Set --name or run.dir, or empty it.",
        )
    return False


def create_study(
    name: str, dir: epath.PathLike, *, overwrite: bool, facts: Mapping[str, Any]
) -> StudyFolder:
    """Make or reopen the folder of a study, locked for this process.

    Args:
        name: the study's name.
        dir: the folder that holds runs.
        overwrite: move the study that is there to `NAME.old-TIME`; `discard_old` deletes it.
        facts: for `study.json`, where the study is new.

    Raises:
        UserError: a living process, named, works in that folder.
    """
    path = run_path(name, dir)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    old = None
    if overwrite and (path / STUDY_FILE).exists():
        old = path.parent / f"{path.name}.old-{now.replace(':', '')}"
        with files.lock(path / LOCK_FILE):  # not under the feet of a process that works in it
            path.rename(old)
    study = StudyFolder(path, old)
    study.lock()
    if not (path / STUDY_FILE).exists():
        study.update(name=name, state="running", started=now, **facts)
    return study


def check_one_process() -> None:
    """Raise a UserError where several processes would train one study."""
    if jax.process_count() > 1:
        raise UserError("A study runs in one process.", "Start it on one host.")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _column(values: Sequence[Any]) -> list[Any]:
    """Values of one type: as they are where they have one, floats, or all as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {str} or kinds <= {int}:
        return list(values)
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]
