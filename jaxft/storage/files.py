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
    """Whether `path` is in a bucket (`gs://...`), where nothing can be renamed or locked.

    Raises:
        UserError: it is an address of another kind, `http://...` or `zip://...::...`, which a
            config from a stranger could have this machine open.
    """
    text = os.fspath(path)
    if "://" not in text:
        return False
    if not text.startswith(BUCKET) or "::" in text:
        raise UserError(
            f"'{text}' is neither a path on this machine nor one in a bucket.",
            f"Addresses begin with {BUCKET}; copy what is elsewhere here first.",
        )
    return True


def check_inside(path: pathlib.Path, folder: pathlib.Path, name: str) -> None:
    """Raise a UserError where `path` does not stay below `folder`, with its links followed.

    Args:
        path: a path that follows from a name in somebody else's file or bucket.
        folder: the folder that it belongs to.
        name: the name as it was given, for the message.
    """
    top, resolved_path = folder.resolve(), path.resolve()
    if resolved_path == top or not resolved_path.is_relative_to(top):
        raise UserError(f"'{name}' leads out of the folder it belongs to.", "Nothing was written.")


def place(path: epath.PathLike) -> pathlib.Path:
    """A path as what it is of: pathlib's, or of a bucket etils', which has the same methods."""
    return epath.Path(path) if is_bucket(path) else pathlib.Path(path)


def resolved(path: epath.PathLike) -> pathlib.Path:
    """A path from the root on, by which two names of one folder are alike."""
    found = place(path)
    return found if is_bucket(found) else found.resolve()


def check_no_link(path: epath.PathLike) -> None:
    """Raise a UserError where what is to be replaced, and deleted later, is a link."""
    if os.path.islink(path):
        raise UserError(
            f"{path} is a link, which --overwrite does not replace.",
            f"Give the folder itself ({os.path.realpath(path)}), or take the link away.",
        )


@contextlib.contextmanager
def written_aside(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """A local path to write to, which becomes `path` when the block ends without an error.

    Beside a local `path` the file is renamed; into a bucket it is copied, since a bucket shows an
    object only when it is whole. After an error nothing of it is left and `path` is as it was.

    Args:
        path: where the file shall be; its folder is made.

    Raises:
        UserError: the disk is full, or may not be written to; `path` is a link, a device, a
            folder or anything else than a regular file.
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
            raise UserError(f"{target} could not be written: {reason}.") from error


def write_atomic(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a whole file; a reader sees the old content or the new, never a part.

    Args:
        path: the file; its folder is made.
        content: bytes, or text that is written as UTF-8.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    with written_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def create_file(path: pathlib.Path) -> int:
    """Makes an empty file where nothing is, and gives its mode: what the umask leaves of 0666.

    Raises:
        OSError: something has that name already, a link to nowhere too.
    """
    made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        return stat.S_IMODE(os.fstat(made).st_mode)
    finally:
        os.close(made)


def settle_file(path: pathlib.Path, mode: int) -> None:
    """Puts a file's bytes on the disk, so that its name may follow, and gives it `mode`.

    A library that writes by renaming leaves a mode of its own.

    Raises:
        OSError: the disk fails, or a link has taken the file's place.
    """
    written = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(written, mode)
        os.fsync(written)
    finally:
        os.close(written)


def replace_file(aside: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a whole file to `target`, over a regular file and nothing else.

    Raises:
        UserError: `target` is a link, a device, a folder or anything else.
        OSError: it may not be renamed.
    """
    check_regular(target)
    os.replace(aside, target)


def check_regular(path: pathlib.Path) -> None:
    """Raises a UserError where something that is not a regular file has the name of an output.

    A symbolic link is refused, not followed and not replaced: what it leads to may be anything.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise UserError(
            f"{path} is a symbolic link, which is neither followed nor replaced.",
            "Name the file that it leads to, or delete the link.",
        )
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise UserError(f"{path} is {kind}, not a file that can be replaced.", "Name another file.")


def is_leftover(name: str) -> bool:
    """Whether a file's name is one under which a process that was killed left it half-written."""
    return _ASIDE.fullmatch(name) is not None


def names_in(folder: epath.PathLike) -> set[str]:
    """The names of what is in a folder; nothing where there is none.

    What a process that was killed left half-written has the name that the file was to have.
    """
    path = epath.Path(folder)
    names = [entry.name for entry in path.iterdir()] if path.exists() else []
    return {_ASIDE.sub(r"\1", name) for name in names}


def commit(folder: epath.PathLike) -> None:
    """Marks a folder as complete; the last thing that is written into it."""
    write_atomic(epath.Path(folder) / COMMITTED, "")


def is_committed(folder: epath.PathLike) -> bool:
    """Whether everything in `folder` was written to the end."""
    return (epath.Path(folder) / COMMITTED).exists()


def sha256(path: epath.PathLike) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with epath.Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def lock(path: epath.PathLike, timeout: float = 0.0) -> Iterator[None]:
    """Holds `path` for this process; the system lets go of it when the process dies, however.

    A bucket has no locks: there it holds nothing, and two runs into one folder are not noticed.

    Args:
        path: the lock's file; its folder is made. `path.owner` beside it says who holds it.
        timeout: seconds to wait for another process; negative waits for ever.

    Raises:
        UserError: another living process, which is named, holds it; or the folder takes no lock.
    """
    if is_bucket(path):
        yield
        return
    file = pathlib.Path(path)
    owner = file.with_name(f"{file.name}.owner")
    held = filelock.FileLock(file, timeout=timeout)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout:
        name = owner.read_text() if owner.exists() else "another process"
        raise UserError(
            f"{file.parent} is in use by {name}.", "Wait for it to end, or stop it."
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{file.parent} could not be locked: {reason}.") from error
    try:
        write_atomic(owner, describe_process())
        yield
    finally:
        owner.unlink(missing_ok=True)
        held.release()


def describe_process() -> str:
    """This process as a person would look for it: number, machine, command."""
    command = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    return f"process {os.getpid()} on {socket.gethostname()} ({command})"


def cache_dir() -> pathlib.Path:
    """The user's cache folder, made with mode 0700 where it is not there yet.

    `$JAXFT_CACHE`, else `$XDG_CACHE_HOME/jaxft`, else `~/.cache/jaxft`. It is always local to this
    machine: tokens, weights and compiled programs in it can be made again.
    """
    chosen = os.environ.get("JAXFT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(chosen if chosen else f"{base}/jaxft").expanduser()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
