"""Kinds of folders that commands make in `run.dir`: checked before use, set aside when replaced."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeGuard

from etils import epath

from jaxft.errors import UserError
from jaxft.storage import files
from jaxft.storage.files import is_bucket
from jaxft.storage.json_files import read_json_object

SET_ASIDE = r"\.old-\d{4}-\d\d-\d\dT\d{6}Z"  # what `set_aside` adds to a folder's name


@dataclass(frozen=True)
class FolderKind:
    """Kind of folder that a command makes in `run.dir`.

    Attributes:
        noun: in messages.
        file: the file that makes a folder one of this kind; written last.
        lock: the lock file of the process that works in it.
        name_key: the option that names the folder.
        leftovers: files that a killed start leaves, whole or half-written, besides those.
    """

    noun: str
    file: str
    lock: str
    name_key: str
    leftovers: tuple[str, ...] = ()


def check_folder(path: epath.Path, kind: FolderKind, *, resume: bool, overwrite: bool) -> bool:
    """Return whether a folder is one to resume; nothing is changed.

    Args:
        path: the folder, which need not exist.
        kind: the kind of folder that it should be.
        resume, overwrite: the flags of the command.

    Raises:
        UserError: the folder is not empty, and the flags do not say what to do with it; or it is
            a link and would be replaced.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other.", "Give one of them.")
    if (path / kind.file).exists():
        if overwrite:
            files.check_no_link(path)
            _check_own(path, kind)
        if not resume and not overwrite:
            raise UserError(
                f"{path} already holds a {kind.noun}.",
                f"Add --resume to continue it, --overwrite to replace it, or set {kind.name_key}.",
            )
        return resume
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file.", f"Set {kind.name_key} or run.dir.")
    if files.names_in(path) - _start_files(kind):
        raise UserError(
            f"{path} is not empty and holds no {kind.noun} (it has no {kind.file}), so neither "
            "--resume nor --overwrite takes it.",
            f"Set {kind.name_key} or run.dir, or empty it.",
        )
    return False


def set_aside(path: epath.Path, kind: FolderKind) -> str | None:
    """Rename a folder to `NAME.old-TIME`, and return that name; None where there is none."""
    if not (path / kind.file).exists():
        return None
    old = f"{path.name}.old-{utc_now().replace(':', '')}"
    with files.lock(path / kind.lock):  # fails while another process works in the folder
        path.rename(path.parent / old)
    return old


def is_set_aside(old: Any, parent: epath.Path, name: str) -> TypeGuard[str]:
    """Return whether `old` is a name that `set_aside` gives to the folder `name` of `parent`."""
    own = isinstance(old, str) and re.fullmatch(re.escape(name) + SET_ASIDE, old) is not None
    return own and not os.path.islink(parent / old)


def put_back(path: epath.Path, kind: FolderKind) -> None:
    """Undo `set_aside` where a command ended before it wrote anything that could be resumed.

    Otherwise the old folder would stay under its new name, and nothing would refer to it.
    """
    if is_bucket(path) or (path / kind.file).exists() or not path.parent.is_dir():
        return
    asides = [
        entry
        for entry in path.parent.iterdir()
        if is_set_aside(entry.name, path.parent, path.name) and (entry / kind.file).exists()
    ]
    if not asides or files.names_in(path) - _start_files(kind):
        return
    with contextlib.suppress(UserError), files.lock(path / kind.lock):  # or one has just started
        if (path / kind.file).exists():
            return
        path.rmtree()
        max(asides, key=lambda entry: entry.name).rename(path)


def replaced(path: epath.Path, kind: FolderKind, old: Any) -> epath.Path | None:
    """Return the folder that `path` replaces, where it was set aside; None if it replaces none.

    Args:
        path: the folder.
        kind: its kind.
        old: `replaces` of its JSON file, which may come from somebody else.

    Raises:
        UserError: `old` is not a name that `set_aside` gives to this folder.
    """
    if old is None:
        return None
    if is_set_aside(old, path.parent, path.name):
        return path.parent / old
    raise UserError(
        f"{path / kind.file}: {str(old)[:200]!r} is not a {kind.noun} that this one replaced.",
        "Set 'replaces' to null; nothing was deleted.",
    )


def remove_replaced(folder: epath.Path, name: str, kind: FolderKind) -> None:
    """Delete a folder that was set aside, after those that it had itself replaced.

    Args:
        folder: what `replaced` returned; deleting it again is harmless.
        name: of the folder in its place.
        kind: their kind.
    """
    chain: list[epath.Path] = []
    while folder not in chain and (folder / kind.file).exists():
        chain.append(folder)
        with contextlib.suppress(UserError):
            old = read_json_object(folder / kind.file).get("replaces")
            if is_set_aside(old, folder.parent, name):
                folder = folder.parent / old
    for one in reversed(chain or [folder]):
        _remove(one, kind)


def _remove(path: epath.Path, kind: FolderKind) -> None:
    """Delete a folder, the file that makes it one of its kind last: killed, it is tried again."""
    entries = list(path.iterdir()) if path.exists() else []
    if entries and not (path / kind.file).exists():
        return  # it is something else
    for entry in sorted(entries, key=lambda entry: entry.name == kind.file):
        if entry.is_dir() and not os.path.islink(entry):
            entry.rmtree()
        else:
            entry.unlink()
    path.rmtree(missing_ok=True)


def _check_own(path: epath.Path, kind: FolderKind) -> None:
    """Raise a UserError if --overwrite would delete a folder that jaxft did not make."""
    content: dict[str, Any] = {}
    with contextlib.suppress(UserError, OSError):
        content = read_json_object(path / kind.file)
    if not {"state", "started"} <= content.keys():
        raise UserError(
            f"{path / kind.file} is not one that jaxft writes, so --overwrite leaves {path} alone.",
            f"Set {kind.name_key} or run.dir, or delete the folder yourself.",
        )


def _start_files(kind: FolderKind) -> set[str]:
    """Return the names of the files that a killed start may leave."""
    return {kind.file, kind.lock, f"{kind.lock}.owner", *kind.leftovers}


def utc_now() -> str:
    """Return the time in UTC, as `run.json` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
