"""Kinds of folders that commands make in `run.dir`: checked before use, set aside when replaced."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from etils import epath

from jaxft.errors import UserError
from jaxft.storage import files

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
        if not resume and not overwrite:
            raise UserError(
                f"{path} already holds a {kind.noun}.",
                f"Add --resume to continue it, --overwrite to replace it, or set {kind.name_key}.",
            )
        if overwrite:
            files.check_no_link(path)
        return resume
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file.", f"Set {kind.name_key} or run.dir.")
    if files.names_in(path) - {kind.file, kind.lock, f"{kind.lock}.owner", *kind.leftovers}:
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


def utc_now() -> str:
    """Return the time in UTC, as `run.json` has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
