"""Files in a local folder or a bucket: written whole or not at all, committed, locked, hashed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
import shlex
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator

import filelock
from etils import epath

from jaxft.errors import UserError

BUCKET = "gs://"
_ASIDE = re.compile(r"^\.(.+)\.[0-9a-f]+\.tmp$")  # see `written_aside`
COMMITTED = "COMMITTED"  # a folder without this file is half-written and never read


def is_bucket(path: epath.PathLike) -> bool:
    """Return whether `path` is in a bucket (`gs://...`), where nothing can be renamed or locked.

    Raises:
        UserError: it is a URL of another kind, `http://...` or `zip://...::...`, which an
            untrusted config could make this machine open.
    """
    text = os.fspath(path)
    if "://" not in text:
        return False
    if not text.startswith(BUCKET) or "::" in text:
        raise UserError(
            f"'{text}' is neither a local path nor a path in a bucket.",
            f"Bucket paths begin with {BUCKET}; download anything else first.",
        )
    return True


def check_inside(path: pathlib.Path, folder: pathlib.Path, name: str) -> None:
    """Raise a UserError if `path`, with links resolved, is not below `folder`.

    Args:
        path: a path built from a name in an untrusted file or bucket.
        folder: the folder that it belongs to.
        name: the original name, for the message.
    """
    top, resolved_path = folder.resolve(), path.resolve()
    if resolved_path == top or not resolved_path.is_relative_to(top):
        raise UserError(f"'{name}' leads outside its folder.", "Nothing was written.")


def place(path: epath.PathLike) -> pathlib.Path:
    """Return a `pathlib.Path`, or for a bucket the path of etils, which has the same methods."""
    return epath.Path(path) if is_bucket(path) else pathlib.Path(path)


def resolved(path: epath.PathLike) -> pathlib.Path:
    """Return an absolute path without links, so that two names of one folder compare equal."""
    absolute = place(path)
    return absolute if is_bucket(absolute) else absolute.resolve()


def check_no_link(path: epath.PathLike) -> None:
    """Raise a UserError if a folder that --overwrite would replace and later delete is a link."""
    if os.path.islink(path):
        raise UserError(
            f"{path} is a symbolic link, which --overwrite does not replace.",
            f"Name the folder itself ({os.path.realpath(path)}), or delete the link.",
        )


@contextlib.contextmanager
def written_aside(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yield a local path to write to, which becomes `path` when the block ends without an error.

    A local file is renamed; into a bucket it is copied, since a bucket shows an object only when
    it is complete. After an error the new file is deleted and `path` is unchanged.

    Args:
        path: the final path; its folder is created.

    Raises:
        UserError: the disk is full or not writable; `path` is a link, a device, a folder or
            anything but a regular file.
    """
    target = epath.Path(path)
    with contextlib.ExitStack() as cleanup:
        try:
            if is_bucket(target):
                folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="jaxft-"))
                aside = pathlib.Path(folder) / target.name
                yield aside
                epath.Path(aside).copy(target, overwrite=True)
            else:
                local = pathlib.Path(target)
                check_regular(local)
                local.parent.mkdir(parents=True, exist_ok=True)
                aside = local.with_name(f".{local.name}.{secrets.token_hex(8)}.tmp")
                mode = create_file(aside)
                cleanup.callback(aside.unlink, missing_ok=True)
                yield aside
                settle_file(aside, mode)
                replace_file(aside, local)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"Cannot write {target}: {reason}.") from error


def write_atomic(path: epath.PathLike, content: bytes | str) -> None:
    """Write a whole file; a reader sees the old content or the new, never a part.

    Args:
        path: the file; its folder is created.
        content: bytes, or text that is written as UTF-8.

    Raises:
        UserError: the disk is full or not writable.
    """
    with written_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def create_file(path: pathlib.Path) -> int:
    """Create an empty file and return its mode: 0666 less the umask.

    Raises:
        OSError: the name is taken, even by a dangling link.
    """
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        return stat.S_IMODE(os.fstat(made).st_mode)
    finally:
        os.close(made)


def settle_file(path: pathlib.Path, mode: int) -> None:
    """Flush a file to disk before it is renamed, and set its mode.

    A library that writes by renaming leaves a mode of its own.

    Raises:
        OSError: the disk fails, or the file has been replaced by a link.
    """
    written = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(written, mode)
        os.fsync(written)
    finally:
        os.close(written)


def replace_file(aside: pathlib.Path, target: pathlib.Path) -> None:
    """Rename a complete file to `target`, replacing a regular file only.

    Raises:
        UserError: `target` is a link, a device, a folder or anything but a regular file.
        OSError: the rename fails.
    """
    check_regular(target)
    os.replace(aside, target)


def check_regular(path: pathlib.Path) -> None:
    """Raise a UserError if an output's name belongs to anything but a regular file.

    A symbolic link is refused, neither followed nor replaced: it may lead anywhere.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise UserError(
            f"{path} is a symbolic link, which jaxft neither follows nor replaces.",
            "Name the file that it points to, or delete the link.",
        )
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise UserError(f"{path} is {kind}, not a regular file.", "Name another file.")


def is_leftover(name: str) -> bool:
    """Return whether a file name is that of a half-written file that a killed process left."""
    return _ASIDE.fullmatch(name) is not None


def remove_leftovers(folder: epath.PathLike) -> None:
    """Delete the half-written files that killed processes left in a local folder."""
    path = pathlib.Path(folder)
    for entry in path.iterdir() if not is_bucket(folder) and path.is_dir() else ():
        if is_leftover(entry.name) and entry.is_file() and not entry.is_symlink():
            entry.unlink(missing_ok=True)


def names_in(folder: epath.PathLike) -> set[str]:
    """Return the names of the entries of a folder; an empty set if it does not exist.

    A half-written file that a killed process left counts under its final name.
    """
    path = epath.Path(folder)
    names = [entry.name for entry in path.iterdir()] if path.exists() else []
    return {_ASIDE.sub(r"\1", name) for name in names}


def commit(folder: epath.PathLike) -> None:
    """Mark a folder as complete: the last file that is written to it."""
    write_atomic(epath.Path(folder) / COMMITTED, "")


def is_committed(folder: epath.PathLike) -> bool:
    """Return whether `folder` was written completely."""
    return (epath.Path(folder) / COMMITTED).exists()


def sha256(path: epath.PathLike) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def lock(path: epath.PathLike, timeout: float = 0.0) -> Iterator[None]:
    """Lock `path` for this process; the system releases it however the process ends.

    A bucket has no locks: there two runs writing to one folder go unnoticed.

    Args:
        path: the lock file; its folder is created. `path.owner` beside it names the owner.
        timeout: seconds to wait for another process; a negative number waits forever.

    Raises:
        UserError: another process, named in the message, holds the lock; or the folder cannot
            be locked.
    """
    if is_bucket(path):
        yield
        return
    file = pathlib.Path(path)
    owner = file.with_name(f"{file.name}.owner")
    file_lock = filelock.FileLock(file, timeout=timeout)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except filelock.Timeout:
        name = owner.read_text() if owner.exists() else "another process"
        raise UserError(
            f"{file.parent} is in use by {name}.", "Wait for it to end, or stop it."
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"Cannot lock {file.parent}: {reason}.") from error
    try:
        write_atomic(owner, describe_process())
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that fails hides no error from inside
            owner.unlink(missing_ok=True)
        file_lock.release()


def describe_process() -> str:
    """Describe this process so that a person finds it: number, machine, command."""
    command = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command})"


def cache_dir() -> pathlib.Path:
    """Return the user's cache folder, created with mode 0700 if it does not exist.

    `$JAXFT_CACHE`, else `$XDG_CACHE_HOME/jaxft`, else `~/.cache/jaxft`. It is always local to this
    machine: the tokens, weights and compiled programs in it can be rebuilt.
    """
    chosen = os.environ.get("JAXFT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(chosen if chosen else f"{base}/jaxft").expanduser()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
