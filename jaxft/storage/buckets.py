"""Files and folders in buckets, as they are on this machine: brought here, and put back.

Buckets are `gs://...`; the extra `[gcs]` has their client.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fsspec
from etils import epath

from jaxft.errors import UserError
from jaxft.storage.files import cache_dir, check_inside, commit, is_bucket, is_committed, lock

# Others write into the same folders (TensorStore, other hosts), which a list that is kept would
# not show. It is read when the first client is made.
for _kind in ("gs", "gcs"):
    fsspec.config.conf.setdefault(_kind, {})["use_listings_cache"] = False


@contextlib.contextmanager
def reached(path: epath.PathLike) -> Iterator[None]:
    """A block in which what a bucket's client raises becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{path} is in a bucket, whose client is not installed ({_reason(error)}).",
            "Install it: pip install 'jaxft[gcs]'.",
        ) from error
    except Exception as error:  # each client has errors of its own
        if not is_bucket(path):
            raise
        raise UserError(
            f"{path} cannot be reached: {_reason(error)}.",
            "Look at the bucket's name, at its permissions and at your login "
            "(gcloud auth application-default login).",
        ) from error


def fetched(path: epath.PathLike) -> pathlib.Path:
    """`path` on this machine: itself, or of a file or folder in a bucket a copy in the cache.

    Raises:
        UserError: there is nothing in the bucket under this name, or no right to it; an object
            there is named so that it would be written outside the cache.
    """
    if not is_bucket(path):
        return pathlib.Path(path)
    with reached(path):
        client, root = fsspec.core.url_to_fs(os.fspath(path))
        whole = client.isfile(root)
        found = {root: client.info(root)} if whole else client.find(root, detail=True)
        if not found:
            raise UserError(f"There is nothing at {path}.")
        versions = [(name, about["size"], _version(about)) for name, about in sorted(found.items())]
        key = hashlib.sha256(repr((root, versions)).encode()).hexdigest()[:16]
        folder = cache_dir() / "buckets" / key
        top = folder / pathlib.PurePosixPath(root).name
        targets = {root: top} if whole else _targets(found, root, top)
        check_inside(top, folder, str(path))
        with lock(folder.with_suffix(".lock"), timeout=-1):
            if not is_committed(folder):
                for name, target in targets.items():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    client.get_file(name, str(target))
                commit(folder)
    return top


def _targets(names: Iterable[str], root: str, top: pathlib.Path) -> dict[str, pathlib.Path]:
    """Where each object below `root` goes in the folder `top`.

    Raises:
        UserError: an object's name, which may hold any text, leads out of that folder.
    """
    targets = {name: top / name[len(root) :].lstrip("/") for name in names}
    for name, target in targets.items():
        check_inside(target, top, name)
    return targets


def _version(about: dict[str, Any]) -> str:
    """What changes whenever a file in a bucket is written."""
    return str(about.get("generation") or about.get("ETag") or about.get("mtime"))


def matching(pattern: str) -> list[str]:
    """The files in a bucket that are of a pattern such as `gs://bucket/part-*.csv`."""
    with reached(pattern):
        client, root = fsspec.core.url_to_fs(pattern)
        return [client.unstrip_protocol(name) for name in client.glob(root) if client.isfile(name)]


class LocalFolder:
    """A folder of this machine for what is written bit by bit, which no bucket takes.

    Attributes:
        path: where to write: the folder itself, or what stands in for one in a bucket.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        bucket = is_bucket(folder)
        self._made = tempfile.TemporaryDirectory(prefix="jaxft-") if bucket else None
        self.path = pathlib.Path(folder if self._made is None else self._made.name)
        self._kept: dict[pathlib.Path, tuple[int, int]] = {}

    def keep(self) -> None:
        """Put what has changed into the bucket."""
        if self._made is None:
            return
        files = [path for path in self.path.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):  # as they were
            about = file.stat()
            now = (about.st_size, about.st_mtime_ns)
            if self._kept.get(file) == now:
                continue
            target = self._folder / file.relative_to(self.path)
            with reached(target):
                epath.Path(file).copy(target, overwrite=True)
            self._kept[file] = now

    def close(self) -> None:
        """Put what has changed into the bucket, and take away what stood in for it."""
        try:
            self.keep()
        finally:
            self.discard()

    def discard(self) -> None:
        """Take away what stood in for the folder, whatever is in it."""
        if self._made is not None:
            self._made.cleanup()


@contextlib.contextmanager
def published(folder: epath.PathLike) -> Iterator[pathlib.Path]:
    """A folder of this machine that is in the bucket when the block ends without an error."""
    local = LocalFolder(folder)
    try:
        yield local.path
        local.keep()
    finally:
        local.discard()


def refusal(folder: epath.PathLike) -> tuple[str, str] | None:
    """What a run does with its folder that cannot be done in `folder`, and why; None if it can.

    A file of an odd name is written there, looked for, and taken away.
    """
    root = epath.Path(folder)
    probe = root / f".jaxft-{uuid.uuid4().hex}"

    def listed() -> None:
        if probe.name not in {path.name for path in root.iterdir()}:
            raise OSError("what was written is not in the list")

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
    """Raise a UserError where `folder` is in a bucket in which a run could not be kept."""
    if not is_bucket(folder):
        return
    found = refusal(folder)
    if found is not None:
        raise UserError(
            f"{folder} cannot be {found[0]}: {found[1]}.",
            "A run needs to write, list and delete there (the role Storage Object Admin); "
            "jaxft doctor --dir tries it.",
        )


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or file"
    said = re.sub(r"https?://\S+", "", str(error))  # the client's own address of it
    return " ".join(said.split())[:200].rstrip(".") or type(error).__name__
