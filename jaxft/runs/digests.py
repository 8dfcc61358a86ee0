"""Digests of a run's files, in one small file: damage is noticed before it changes a result.

`digests.json` lists the contents that each file may have. Before a file is replaced, the digest of
its new content is added to that of the old one, so that a process may be killed at any moment: what
is there is listed. A run folder without `digests.json`, of an earlier version, is not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from jaxft.errors import UserError
from jaxft.storage import files
from jaxft.storage.json_files import parse_json, read_regular

DIGESTS = "digests.json"
_PIECE = 1 << 20  # bytes that are hashed at a time

Entry = dict[str, Any]  # {"bytes": int, "sha256": str}


class Digests:
    """Digests of the files of one folder.

    Args:
        folder: the run's, local or in a bucket. Only one process writes it at a time.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        self._entries: dict[str, list[Entry]] | None = None  # as written; None before the first
        self._current: dict[str, Entry] = {}  # of the files that this process has written

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all, with its digest.

        Args:
            name: its path in the folder.
            content: what it will hold.

        Raises:
            UserError: the disk is full or not writable, or `digests.json` is damaged.
        """
        entries, new = self._settled(), _digest(content)
        listed = entries.get(name, [])
        if len(listed) > 1:  # a killed process added the last: which one is there?
            path = self._folder / name
            now = [_digest(path.read_bytes())] if path.is_file() else []
            listed = [entry for entry in listed if entry in now]
        self._write(entries | {name: [*(entry for entry in listed if entry != new), new]})
        files.write_atomic(self._folder / name, content)
        self._current[name] = new

    def record(self, contents: Mapping[str, bytes]) -> None:
        """Add digests of files that other code has written, or is about to replace.

        Args:
            contents: path in the folder -> the content.

        Raises:
            UserError: `digests.json` is damaged or cannot be written.
        """
        entries = self._settled()
        for name, content in contents.items():
            new = _digest(content)
            entries[name] = [*(entry for entry in entries.get(name, []) if entry != new), new]
        self._write(entries)

    def record_prefix(self, name: str, size: int, sha256: str) -> None:
        """Set the digest of the first `size` bytes of a file that grows; they are on the disk."""
        self._current[name] = {"bytes": size, "sha256": sha256}
        self._write(self._settled() | {name: [self._current[name]]})

    def names(self, prefix: str) -> list[str]:
        """List the files whose path in the folder begins with `prefix`."""
        return sorted(name for name in self._read() if name.startswith(prefix))

    def verified(self, name: str, read: Callable[[], bytes]) -> bytes:
        """Read a file and compare it with its digests.

        Args:
            name: its path in the folder.
            read: reads its content.

        Raises:
            UserError: it is not what was written, or `digests.json` is damaged.
            OSError: as `read`.
        """
        content = read()
        # A running process adds a digest before the file changes, so it is read after the file.
        entries = self._read().get(name)
        if entries and _digest(content) not in entries:
            raise self.damaged(name)
        return content

    def check_prefix(self, name: str) -> None:
        """Compare the beginning of a file that grows with its digest.

        Raises:
            UserError: it is not what was written, is missing, or `digests.json` is damaged.
        """
        entries = self._read().get(name)
        if entries and not any(self._begins_with(name, entry) for entry in entries):
            raise self.damaged(name)

    def damaged(self, name: str) -> UserError:
        """Make the error of a file that is not what was written."""
        return UserError(
            f"{self._folder / name} is damaged: it differs from what was written, by its SHA-256 "
            f"in {DIGESTS}.",
            f"Restore it from a copy. To use the folder as it is, delete {self._folder / DIGESTS}.",
        )

    def _begins_with(self, name: str, entry: Entry) -> bool:
        path, rest = self._folder / name, entry["bytes"]
        if not rest:
            return True
        if not path.is_file():
            return False
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while rest and (block := file.read(min(_PIECE, rest))):
                digest.update(block)
                rest -= len(block)
        return not rest and digest.hexdigest() == entry["sha256"]

    def _settled(self) -> dict[str, list[Entry]]:
        """Return the entries, without those of content that this process has replaced."""
        if self._entries is None:
            self._entries = self._read()
        current = {name: [entry] for name, entry in self._current.items()}
        return self._entries | current

    def _read(self) -> dict[str, list[Entry]]:
        path = self._folder / DIGESTS
        try:
            content = parse_json(read_regular(path), path)
            listed = content["files"]
            sound = content["sha256"] == _seal(listed)
        except FileNotFoundError:
            return {}
        except (UserError, KeyError, TypeError):
            sound = False
        if not sound:
            raise UserError(
                f"{path} is damaged.",
                "Restore it from a copy, or delete it to use the folder's other files unchecked.",
            )
        return listed

    def _write(self, entries: dict[str, list[Entry]]) -> None:
        content = {"sha256": _seal(entries), "files": entries}
        files.write_atomic(self._folder / DIGESTS, json.dumps(content, indent=1) + "\n")
        self._entries = entries


def _digest(content: bytes) -> Entry:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _seal(entries: Mapping[str, list[Entry]]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
