"""The process that holds a lock of `files.lock`, found without disturbing the lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import socket
import stat
import sys
from dataclasses import dataclass

MOST_BYTES = 65_536  # of the file that names the owner
OWNER = re.compile(rb"process (\d{1,10}) on (\S+) \(")


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as far as this machine can tell.

    Attributes:
        pid: its number on its machine.
        host: that machine.
        alive: whether it runs and holds the lock; None on another machine, where nobody knows.
    """

    pid: int
    host: str
    alive: bool | None

    @property
    def here(self) -> bool:
        """Return whether it is a process of this machine."""
        return self.alive is not None


def lock_holder(lock: pathlib.Path) -> Holder | None:
    """Return who took a lock last and did not release it; None where nobody did.

    A process that was killed releases its lock without a word: it is returned as not alive.

    Args:
        lock: the lock file.
    """
    match = OWNER.match(_start_of(lock.with_name(f"{lock.name}.owner")))
    if match is None:
        return None
    pid, host = int(match[1]), match[2].decode(errors="replace")
    return Holder(pid, host, is_held_by(pid, lock) if host == socket.gethostname() else None)


def is_held_by(pid: int, lock: pathlib.Path) -> bool:
    """Return whether a living process of this machine holds a lock.

    The lock is not tried where the process can be asked for its open files (Linux, one's own
    processes): a run that starts at that moment must find it free.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is another user's
        return _is_locked(lock)
    if sys.platform != "linux":
        return _is_locked(lock)
    try:
        return _has_open(pid, lock)
    except PermissionError:
        return _is_locked(lock)
    except OSError:
        return False


def _has_open(pid: int, lock: pathlib.Path) -> bool:
    wanted = lock.stat()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), wanted):
                return True
    return False


def _is_locked(lock: pathlib.Path) -> bool:
    try:
        file = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _start_of(path: pathlib.Path) -> bytes:
    """Return the start of a regular file; nothing where there is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(file, MOST_BYTES) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    finally:
        os.close(file)
