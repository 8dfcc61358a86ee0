"""The folder of a run: made, locked, resumed, replaced, and read again.

`run.json` is written last when a folder is made: a folder with it is a run, one without is not.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from jaxft.bounds import MOST_JSON_BYTES
from jaxft.device.distributed import SHARED, compare, from_first, is_first
from jaxft.errors import NEAR, Note, UserError, nearest
from jaxft.runs.digests import DIGESTS, Digests
from jaxft.runs.formats import RUN_FILE, check_format
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
from jaxft.storage.buckets import reached
from jaxft.storage.json_files import parse_json, read_regular
from jaxft.storage.plain_yaml import dump_plain_yaml, load_plain_yaml

CONFIG_FILE = "config.yaml"
LOCK_FILE = "run.lock"
RUN = FolderKind("run", RUN_FILE, LOCK_FILE, "run.name", (CONFIG_FILE, DIGESTS))


class RunFolder:
    """One run's folder; used in a `with` block it is locked until the block ends.

    With several processes only the first writes; the others' writes do nothing.

    Attributes:
        path: the folder, local or in a bucket.
        resumed: whether the run was there before.
        digests: of its files.
    """

    def __init__(
        self,
        path: epath.PathLike,
        resumed: bool = False,
        lock: contextlib.ExitStack | None = None,
    ):
        self.path, self.resumed = epath.Path(path), resumed
        self.digests = Digests(self.path)
        self._lock = lock or contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if isinstance(error, Exception):
                self._fail(error)
        finally:
            self.close()

    @property
    def name(self) -> str:
        """The run's name, which is the folder's."""
        return self.path.name

    @property
    def checkpoints(self) -> epath.Path:
        """Folder of the step checkpoints."""
        return self.path / "checkpoints"

    @property
    def base(self) -> epath.Path:
        """Folder of the parameters as they were loaded or initialized."""
        return self.path / "base"

    @property
    def export(self) -> epath.Path:
        """Folder of the Hugging Face export."""
        return self.path / "export"

    def config(self) -> dict[str, Any]:
        """The resolved config that the run was last started with."""
        file = self.path / CONFIG_FILE
        try:
            return load_plain_yaml(self.read(CONFIG_FILE).decode())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None

    def read_json(self, name: str) -> Any:
        """The content of one of the run's JSON files.

        Raises:
            UserError: it is not there, is no JSON, or has another format than jaxft writes.
        """
        file = self.path / name
        content = parse_json(self.read(name), file)
        check_format(name, content, str(file))
        return content

    def read(self, name: str, most_bytes: int = MOST_JSON_BYTES) -> bytes:
        """The content of one of the run's files, compared with its digest.

        Raises:
            UserError: it is not there, is no regular file, is larger than `most_bytes`, or is not
                what was written.
        """
        try:
            return self.digests.verified(name, lambda: read_regular(self.path / name, most_bytes))
        except FileNotFoundError:
            raise UserError(f"{self.path} has no {name}.") from None

    def check(self, name: str) -> None:
        """Raises a UserError if one of the run's files is not there, or not what was written."""
        try:
            self.digests.verified(name, lambda: (self.path / name).read_bytes())
        except OSError:
            raise self.digests.damaged(name) from None

    def write(self, name: str, text: str) -> None:
        """Writes one of the run's files whole, or not at all, with its digest."""
        if is_first():
            self.digests.write(name, text.encode())

    def write_json(self, name: str, content: Any) -> None:
        """Writes one of the run's JSON files whole, or not at all, with its digest."""
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        self.write(name, text + "\n")

    def update(self, **facts: Any) -> None:
        """Adds facts to `run.json`, such as `state="finished"`; the others stay."""
        if is_first():
            self.write_json(RUN_FILE, {**self.read_json(RUN_FILE), **facts})

    def replaced(self) -> epath.Path | None:
        """Folder where the run that this one replaces was set aside; None where it replaces none.

        Raises:
            UserError: `run.json`, which may come from somebody else, names another folder.
        """
        return replaced(self.path, RUN, self.read_json(RUN_FILE).get("replaces"))

    def discard_old(self) -> None:
        """Deletes the run that this one replaced; to be called after the first save."""
        folder = self.replaced() if is_first() else None
        if folder is not None:
            remove_replaced(folder, self.name, RUN)
            self.update(replaces=None)

    def _fail(self, error: Exception) -> None:
        """Note in `run.json` that the run failed, and in the error where the run before it is."""
        with contextlib.suppress(UserError, OSError):  # the disk may be full
            if self.read_json(RUN_FILE)["state"] == "running":
                self.update(state="failed")
        with contextlib.suppress(UserError, OSError):
            old = self.replaced()
            if old is not None and old.exists():
                error.add_note(Note(f"The run that this one was to replace is in {old}."))

    def close(self) -> None:
        """Lets go of the lock."""
        self._lock.close()


def run_path(name: str, dir: epath.PathLike) -> epath.Path:
    """The folder of the run `name` in `dir`.

    Raises:
        UserError: `name` is not a plain folder name, or `dir` is an address of no bucket.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or ".old-" in name:
        raise UserError(
            f"run.name: '{name}' is not a valid folder name.",
            "Leave out '/', '\\' and '.old-'; set run.dir to choose another folder.",
        )
    return epath.Path(files.place(dir)).expanduser() / name


def check_run(name: str, dir: epath.PathLike, *, resume: bool, overwrite: bool) -> bool:
    """Return whether there is a run to resume; changes nothing.

    Only a run that a killed `--overwrite` set aside, with nothing yet in its place, is put back.

    Args:
        name: the run's name.
        dir: the folder that holds runs.
        resume: go on with the run that is there, or start it where there is none.
        overwrite: replace the run that is there.

    Raises:
        UserError: the folder holds something, and the flags do not say what to do with it; it is
            a link and would be replaced; `run.json` would have a foreign folder deleted.
    """
    path = run_path(name, dir)
    put_back(path, RUN)
    resumed = check_folder(path, RUN, resume=resume, overwrite=overwrite)
    if resumed:
        RunFolder(path).replaced()
    return resumed


def create_run(
    config_dump: Mapping[str, Any],
    name: str,
    dir: epath.PathLike,
    *,
    resume: bool,
    overwrite: bool,
    facts: Mapping[str, Any],
) -> RunFolder:
    """Makes or reopens the folder of a run, locked for this process.

    Args:
        config_dump: the resolved config, written to `config.yaml`.
        name: the run's name.
        dir: the folder that holds runs.
        resume: go on with the run that is there, or start it where there is none.
        overwrite: move the run that is there to `NAME.old-TIME`; `discard_old` deletes it.
        facts: for `run.json`: `environment()` and the command, the resolved durations, the
            checkpoint's commit, the data's fingerprints. The first start's stay; a resume adds its
            own under `resumed`.

    Raises:
        UserError: as `check_run`; or a living process, named, trains in that folder.
    """

    # The first process looks, writes and locks; to the others a folder is there too early or late.
    lock = contextlib.ExitStack()

    def make() -> bool:
        resumed = check_run(name, dir, resume=resume, overwrite=overwrite)
        run = RunFolder(run_path(name, dir), resumed)
        replaces = set_aside(run.path, RUN) if overwrite else None
        try:
            with contextlib.ExitStack() as undone:
                undone.enter_context(files.lock(run.path / LOCK_FILE))
                for folder in (run.path, run.base, run.base / "adapter", run.path / "samples"):
                    files.remove_leftovers(folder)
                _write_start(run, config_dump, facts, replaces)
                lock.push(undone.pop_all())
        except BaseException:
            put_back(run.path, RUN)
            raise
        return resumed

    run = RunFolder(run_path(name, dir), from_first(make), lock)
    there = (run.path / RUN_FILE).exists()
    started = run.read_json(RUN_FILE)["started"] if there else None
    compare({f"the run in {run.path}": started}, SHARED)
    return run


def _write_start(
    run: RunFolder, config_dump: Mapping, facts: Mapping, replaces: str | None
) -> None:
    started = utc_now()
    run.write(CONFIG_FILE, dump_plain_yaml(config_dump))
    if run.resumed:
        first = run.read_json(RUN_FILE)
        resumed = [*first.get("resumed", []), {"started": started, **facts}]
        run.write_json(RUN_FILE, {**first, "state": "running", "resumed": resumed})
        return
    about = {"name": run.name, "state": "running", "started": started, "replaces": replaces}
    run.write_json(RUN_FILE, {**about, **facts})


def open_run(path: epath.PathLike) -> RunFolder:
    """A run to read from, neither locked nor changed; UserError if `path` is no run folder."""
    folder = epath.Path(files.place(path))
    with reached(path):
        if (folder / RUN_FILE).exists():
            return RunFolder(folder, resumed=True)
        there = folder.exists()
    if there:
        inside = _runs_in(folder)
        hint = f"Runs in it: {', '.join(inside)}." if inside else "Runs are made by jaxft train."
        if (folder / "study.json").exists():
            hint = "It is a study: open its index.html, and train its best.yaml for a run."
        raise UserError(f"{folder} is not a run folder: it has no {RUN_FILE}.", hint)
    close = nearest(folder.name, _runs_in(folder.parent), cutoff=NEAR)
    hint = f"Did you mean '{close[0]}'?" if close else "`jaxft train CONFIG` makes a run."
    raise UserError(f"There is no run folder {folder}.", hint)


def _runs_in(folder: epath.Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / RUN_FILE).exists())
