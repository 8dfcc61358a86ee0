"""Files and folders in buckets: fetch them to this machine, and copy results back.

Buckets are `gs://...`; the extra `[gcs]` has their client.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import queue
import re
import socket
import tempfile
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec
from etils import epath

from jaxft.bounds import MOST_BUCKET_SECONDS
from jaxft.errors import UserError
from jaxft.storage.files import cache_dir, check_inside, commit, is_bucket, is_committed, lock
from jaxft.storage.waiting import reported
from jaxft.visible import visible

SLOW_SECONDS = 5.0

STORAGE = "https://storage.googleapis.com"


@contextlib.contextmanager
def reached(path: epath.PathLike) -> Iterator[None]:
    """Turn whatever a bucket's client raises inside the block into a UserError.

    A bucket that answers slowly is shown as waited for.
    """
    name = visible(str(path))
    slow = reported(SLOW_SECONDS, lambda: f"waiting for {name}, which answers slowly.")
    check_network(path)
    try:
        with slow if is_bucket(path) else contextlib.nullcontext():
            yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{path} is in a bucket, and the client library is not installed ({_reason(error)}).",
            "Install it: pip install 'jaxft[gcs]'.",
        ) from error
    except Exception as error:  # each client has errors of its own
        if not is_bucket(path):
            raise
        raise UserError(
            f"{path} cannot be reached: {_reason(error)}.",
            "Check the bucket's name, its permissions and your login "
            "(gcloud auth application-default login).",
        ) from error


def check_network(path: epath.PathLike) -> None:
    """Raise a UserError if `path` is in a bucket and Cloud Storage cannot be reached at all.

    The clients of buckets retry for minutes where there is no network.

    Raises:
        UserError: no connection within `MOST_BUCKET_SECONDS`.
    """
    if not is_bucket(path):
        return
    proxy = urllib.request.getproxies().get("https")
    chosen = map(os.environ.get, ("STORAGE_EMULATOR_HOST", "FSSPEC_GCS_ENDPOINT_URL"))
    address = next(filter(None, chosen), proxy or STORAGE)
    parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    reason = _connection_fault(parts.hostname or "", port)
    if reason:
        raise UserError(
            f"{path} cannot be reached: {parts.hostname} does not answer ({reason}).",
            "Check the network; everything else is read from local paths.",
        )


_REACHED: set[tuple[str, int]] = set()  # hosts that have answered this process


def _connection_fault(host: str, port: int) -> str:
    """Return why no connection to a host can be made; empty if one can be."""
    if (host, port) in _REACHED:
        return ""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), MOST_BUCKET_SECONDS).close()
            answers.put("")
        except OSError as error:
            answers.put(error.strerror or str(error))

    # The name is looked up first, which has no limit of its own.
    threading.Thread(target=connect, daemon=True, name="bucket").start()
    try:
        reason = answers.get(timeout=MOST_BUCKET_SECONDS)
    except queue.Empty:
        reason = f"no answer in {MOST_BUCKET_SECONDS} seconds"
    if not reason:
        _REACHED.add((host, port))
    return reason


def fetched(path: epath.PathLike) -> pathlib.Path:
    """Return a local path: `path` itself, or a cached copy of a file or folder in a bucket.

    Raises:
        UserError: nothing in the bucket has this name, access is denied, or an object's name
            would lead outside the cache.
    """
    if not is_bucket(path):
        return pathlib.Path(path)
    with reached(path):
        client, root = fsspec.core.url_to_fs(os.fspath(path))
        whole = client.isfile(root)
        objects = {root: client.info(root)} if whole else client.find(root, detail=True)
        if not objects:
            raise UserError(f"{path} does not exist.")
        versions = [
            (name, about["size"], _version(about)) for name, about in sorted(objects.items())
        ]
        key = hashlib.sha256(repr((root, versions)).encode()).hexdigest()[:16]
        folder = cache_dir() / "buckets" / key
        top = folder / pathlib.PurePosixPath(root).name
        targets = {root: top} if whole else _targets(objects, root, top)
        check_inside(top, folder, str(path))
        with lock(folder.with_suffix(".lock"), timeout=-1):
            if not is_committed(folder):
                for name, target in targets.items():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    client.get_file(name, str(target))
                commit(folder)
    return top


def _targets(names: Iterable[str], root: str, top: pathlib.Path) -> dict[str, pathlib.Path]:
    """Map each object below `root` to its file in the folder `top`.

    Raises:
        UserError: an object's name, which may hold any text, leads outside that folder.
    """
    targets = {name: top / name[len(root) :].lstrip("/") for name in names}
    for name, target in targets.items():
        check_inside(target, top, name)
    return targets


def _version(about: dict[str, Any]) -> str:
    """Return a string that changes whenever a file in a bucket is written."""
    return str(about.get("generation") or about.get("ETag") or about.get("mtime"))


def matching(pattern: str) -> list[str]:
    """Return the files in a bucket that match a pattern such as `gs://bucket/part-*.csv`."""
    with reached(pattern):
        client, root = fsspec.core.url_to_fs(pattern)
        return [client.unstrip_protocol(name) for name in client.glob(root) if client.isfile(name)]


class LocalFolder:
    """A local folder for files that grow while they are written, which a bucket cannot hold.

    Attributes:
        path: the folder to write to: the folder itself, or a temporary one for a bucket.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        bucket = is_bucket(folder)
        self._made = tempfile.TemporaryDirectory(prefix="jaxft-") if bucket else None
        self.path = pathlib.Path(folder if self._made is None else self._made.name)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}

    def keep(self) -> None:
        """Copy changed files to the bucket."""
        if self._made is None:
            return
        files = [path for path in self.path.rglob("*") if path.is_file()]
        # In the order of writing, so that what refers to another file comes after it.
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            about = file.stat()
            now = (about.st_size, about.st_mtime_ns)
            if self._copied.get(file) == now:
                continue
            target = self._folder / file.relative_to(self.path)
            with reached(target):
                epath.Path(file).copy(target, overwrite=True)
            self._copied[file] = now

    def close(self) -> None:
        """Copy changed files to the bucket, and delete the temporary folder."""
        try:
            self.keep()
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete the temporary folder with everything in it."""
        if self._made is not None:
            self._made.cleanup()


@contextlib.contextmanager
def published(folder: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yield a local folder that is copied to the bucket when the block ends without an error."""
    local = LocalFolder(folder)
    try:
        yield local.path
        local.keep()
    finally:
        local.discard()


def refusal(folder: epath.PathLike) -> tuple[str, str] | None:
    """Return the operation that `folder` refuses to a run, and the reason; None if all work.

    A file with an unlikely name is written, listed and deleted.
    """
    try:
        check_network(folder)
    except UserError as error:
        return "reached", error.message
    root = epath.Path(folder)
    probe = root / f".jaxft-{uuid.uuid4().hex}"

    def listed() -> None:
        if probe.name not in {path.name for path in root.iterdir()}:
            raise OSError("the listing does not show the file just written")

    acts: list[tuple[str, Callable[[], object]]] = [
        ("written to", lambda: probe.write_text("jaxft")),
        ("listed", listed),
        ("deleted from", probe.unlink),
    ]
    for act, does in acts:
        try:
            does()
        except Exception as error:  # each client has errors of its own
            return act, _reason(error)
    return None


def check_bucket(folder: epath.PathLike) -> None:
    """Raise a UserError if `folder` is in a bucket that cannot hold a run."""
    check_network(folder)
    refused = refusal(folder) if is_bucket(folder) else None
    if refused is not None:
        raise UserError(
            f"{folder} cannot be {refused[0]}: {refused[1]}.",
            "A run has to write, list and delete there (role Storage Object Admin); "
            "test it with jaxft doctor --dir.",
        )


def _reason(error: Exception) -> str:
    """Return an error's message in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or file"
    text = re.sub(r"https?://\S+", "", str(error))  # the client's own URL
    return " ".join(text.split())[:200].rstrip(".") or type(error).__name__
