"""Folder of a study: made, locked, resumed, replaced; its table as Parquet.

`study.json` makes a folder a study. The results of a part are in `parts/N.json`, written when the
part is done: a resumed study trains the parts that have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import pyarrow
import pyarrow.parquet
from etils import epath

from jaxft.config.load import Config
from jaxft.device.distributed import from_first, is_first
from jaxft.device.process import environment
from jaxft.errors import UserError
from jaxft.runs.digests import DIGESTS
from jaxft.runs.folder import RunFolder, run_path
from jaxft.runs.kinds import (
    FolderKind,
    check_folder,
    put_back,
    remove_replaced,
    replaced,
    set_aside,
    utc_now,
)
from jaxft.storage import files
from jaxft.storage.buckets import check_bucket
from jaxft.studies.members import Member

STUDY_FILE = "study.json"
TABLE_FILE = "study.parquet"
PARTS = "parts"
STUDY = FolderKind("study", STUDY_FILE, "study.lock", "--name", (DIGESTS,))


class StudyFolder:
    """Folder of a study; used in a `with` block it is locked until the block ends.

    With several processes only the first reads and writes; the others are given what it read.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: epath.PathLike, lock: contextlib.ExitStack | None = None):
        self.path = epath.Path(path)
        self._files = RunFolder(self.path, lock=lock)

    def __enter__(self) -> StudyFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def about(self) -> dict[str, Any]:
        """Read `study.json`."""
        return from_first(lambda: self._files.read_json(STUDY_FILE))

    def update(self, **facts: Any) -> None:
        """Add facts to `study.json`; the others stay."""
        if is_first():
            there = (self.path / STUDY_FILE).exists()
            before = self._files.read_json(STUDY_FILE) if there else {}
            self._files.write_json(STUDY_FILE, {**before, **facts})

    def write_part(self, index: int, result: Mapping[str, Any]) -> None:
        """Write the results of a part."""
        self._files.write_json(f"{PARTS}/{index}.json", result)

    def part(self, index: int) -> dict[str, Any] | None:
        """Read the results of a part; None where it is not done."""
        name = f"{PARTS}/{index}.json"
        there = (self.path / name).exists
        return from_first(lambda: self._files.read_json(name) if there() else None)

    def write_table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `study.parquet`.

        Args:
            rows: mappings of the same keys; other values than numbers, text and bool become JSON.
        """
        if not is_first():
            return
        columns = {name: _column([row.get(name) for row in rows]) for name in _names(rows)}
        with files.written_aside(self.path / TABLE_FILE) as aside:
            pyarrow.parquet.write_table(pyarrow.table(columns), str(aside))

    def write_text(self, name: str, text: str) -> None:
        """Write one of the folder's files atomically."""
        if is_first():
            files.write_atomic(self.path / name, text)

    def discard_old(self) -> None:
        """Delete the study that this one replaced."""
        if not is_first():
            return
        old = replaced(self.path, STUDY, self._files.read_json(STUDY_FILE).get("replaces"))
        if old is not None:
            remove_replaced(old, self.path.name, STUDY)
            self.update(replaces=None)


def check_study(name: str, dir: epath.PathLike, *, resume: bool, overwrite: bool) -> bool:
    """Return whether there is a study to resume; arguments and errors as `check_run`."""
    path = run_path(name, dir)
    check_bucket(path)
    put_back(path, STUDY)
    return check_folder(path, STUDY, resume=resume, overwrite=overwrite)


def create_study(
    name: str, dir: epath.PathLike, *, overwrite: bool, facts: Mapping[str, Any]
) -> StudyFolder:
    """Make or reopen the folder of a study, locked for this process.

    Args:
        name: the study's name.
        dir: the folder that holds runs.
        overwrite: rename an existing study to `NAME.old-TIME`; `discard_old` deletes it.
        facts: for the `study.json` of a new study.

    Raises:
        UserError: another process, named, works in that folder.
    """
    path, lock = run_path(name, dir), contextlib.ExitStack()
    study = StudyFolder(path, lock)

    def make() -> None:
        old = set_aside(path, STUDY) if overwrite else None
        try:
            with contextlib.ExitStack() as undone:
                undone.enter_context(files.lock(path / STUDY.lock))
                for folder in (path, path / PARTS):
                    files.remove_leftovers(folder)
                if not (path / STUDY_FILE).exists():
                    study.update(
                        name=name, state="running", started=utc_now(), replaces=old, **facts
                    )
                lock.push(undone.pop_all())
        except BaseException:
            put_back(path, STUDY)
            raise

    from_first(make)
    return study


def study_facts(
    config: Config,
    vary: Mapping[str, Sequence[Any]],
    members: Sequence[Member],
    metric: str,
    command: Sequence[str],
) -> dict[str, Any]:
    """Describe a study for its `study.json`.

    Args:
        config: what the members have in common.
        vary: config key -> its values.
        members: of the study.
        metric: what they are compared by.
        command: the command line.
    """
    return {
        **environment(),
        "command": list(command),
        "metric": metric,
        "vary": {key: list(values) for key, values in vary.items()},
        "config": config.dump(),
        "members": [{"index": m.index, "values": dict(m.values)} for m in members],
    }


def check_one_process() -> None:
    """Raise a UserError where several processes would train one study."""
    if jax.process_count() > 1:
        raise UserError("A study runs in one process.", "Start it on one host.")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _column(values: Sequence[Any]) -> list[Any]:
    """Make a column of one type: unchanged where it has one, else floats, else JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {str} or kinds <= {int}:
        return list(values)
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]
