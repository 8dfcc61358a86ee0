"""Asks a run of this machine to save at its step and end, as a preemption does."""

from __future__ import annotations

import os
import signal
import sys

from jaxft.board.folders import Folder
from jaxft.board.status import StatusReader
from jaxft.errors import UserError
from jaxft.runs.folder import LOCK_FILE
from jaxft.storage.lock_holder import is_held_by


class Stopper:
    """Sends SIGTERM to runs, to each process once: a second signal would end it unsaved."""

    def __init__(self) -> None:
        self._asked: set[tuple[str, int]] = set()

    def stop(self, folder: Folder) -> str:
        """Ask a run to save and end.

        Returns:
            A sentence that says so.

        Raises:
            UserError: it is a study, or no living process of this machine and user trains it.
        """
        if folder.is_study:
            raise UserError(f"{folder.name} is a study, which saves only between its programs.")
        status = StatusReader(folder).read()
        holder = status.holder
        if holder is None or not status.can_stop:
            elsewhere = f" It runs on {holder.host}." if holder and not holder.here else ""
            raise UserError(f"No process of this machine trains {folder.name}.{elsewhere}")
        asked = (folder.key, holder.pid)
        if asked in self._asked:
            raise UserError(f"{folder.name} was asked already and is saving.")
        self._asked.add(asked)
        try:
            _send(holder.pid, folder)
        except PermissionError:
            self._asked.discard(asked)
            raise UserError(f"The process of {folder.name} belongs to another user.") from None
        return f"{folder.name} was asked to save and stop."


def _send(pid: int, folder: Folder) -> None:
    """Send SIGTERM to the process that holds the run's lock, and to no later one of its number."""
    gone = UserError(f"The process of {folder.name} has just ended.")
    try:
        if sys.platform != "linux":
            os.kill(pid, signal.SIGTERM)
            return
        process = os.pidfd_open(pid)
        try:
            if not is_held_by(pid, folder.path / LOCK_FILE):
                raise gone
            signal.pidfd_send_signal(process, signal.SIGTERM)
        finally:
            os.close(process)
    except ProcessLookupError:
        raise gone from None
