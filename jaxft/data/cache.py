"""A cache of arrays per example: ragged, memory-mapped, never half-written.

An entry is a folder: one file per field with every example's values end to end, the examples'
lengths, a description, and the commit marker, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.storage import files

Example = Mapping[str, np.ndarray]
Encoded = tuple[Iterable[Example], Mapping[str, Any]]  # examples, and metadata of the whole
DESCRIPTION = "cache.json"
LENGTHS = "lengths.npy"
FORMAT = 2
LOCK_SECONDS = 3600.0  # how long to wait while another process builds the same entry


class ExampleArrays(ABC):
    """Arrays of each example of a split.

    Attributes:
        lengths: `[examples]` int64, the first axis of each example's arrays.
        meta: facts about the whole, from the builder.
        identity: a hash that changes with any bit of any example; None where it has to be computed.
    """

    lengths: np.ndarray
    meta: dict[str, Any]
    identity: str | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Return one example: field -> `[length, ...]`."""

    def take(self, index: np.ndarray) -> Mapping[int, Example]:
        """Return the examples of a batch by their numbers; -1 is none."""
        return {number: self[number] for number in index.ravel().tolist() if number >= 0}


class Ragged(ExampleArrays):
    """Examples of differing lengths, read from disk on demand; cheap to pickle.

    Attributes:
        folder: the entry's folder.
        nbytes: bytes of all arrays.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        described = json.loads((folder / DESCRIPTION).read_text())
        self.meta = described["meta"]
        self.lengths = np.load(folder / LENGTHS)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        total = int(self._starts[-1])
        self._fields = {
            name: _map(folder / f"{name}.bin", np.dtype(field["dtype"]), (total, *field["shape"]))
            for name, field in described["fields"].items()
        }
        self.nbytes = sum(values.nbytes for values in self._fields.values())

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return one example: field -> `[length, ...]`, a read-only view of the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        start, end = self._starts[index], self._starts[index + 1]
        return {name: values[start:end] for name, values in self._fields.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a worker process maps the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]  # the folder is all there is to it


class InMemory(ExampleArrays):
    """Examples in memory.

    Args:
        examples: field -> `[length, ...]` of each.
        meta: facts about the whole, from the builder.
    """

    def __init__(self, examples: Iterable[Example], meta: Mapping[str, Any]):
        self.meta = dict(meta)
        self._examples = list(examples)
        self.lengths = np.array([len(next(iter(one.values()))) for one in self._examples], np.int64)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def cache_key(**parts: Any) -> str:
    """Return a key that changes with anything that the arrays depend on."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(examples: ExampleArrays) -> str:
    """Return a hash that changes with any bit of any example."""
    if examples.identity is not None:
        return examples.identity
    digest = hashlib.sha256(np.asarray(examples.lengths, np.int64).tobytes())
    for number in range(len(examples)):
        for name, values in sorted(examples[number].items()):
            digest.update(f"{name}{values.dtype.str}".encode())
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def build_or_open(root: Path, key: str, build: Callable[[], Encoded]) -> Ragged:
    """Return the entry `key`, building it if it does not exist.

    Args:
        root: the folder of entries; made with mode 0700 where it is not there.
        key: as `cache_key` gives it.
        build: gives the examples (field -> `[length, ...]`; the same fields, types and length
            of each field of an example) and what to keep of the whole, as JSON.

    Raises:
        UserError: the entry cannot be written, or another process has built it for an hour.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = root / key
    if not _is_whole(folder):
        with files.lock(root / f"{key}.lock", timeout=LOCK_SECONDS):
            if not _is_whole(folder):  # another process may have built it while we waited
                _build(folder, build)
    return Ragged(folder)


def is_built(root: Path, key: str) -> bool:
    """Return whether `build_or_open` would find the entry `key` there."""
    return _is_whole(root / key)


def _build(folder: Path, build: Callable[[], Encoded]) -> None:
    """Write an entry aside and rename it, replacing a half-written one."""
    examples, meta = build()
    aside = folder.with_name(f"{folder.name}.partial")
    try:
        for leftover in (aside, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(mode=0o700)
        _write(aside, examples, meta)
        aside.rename(folder)
        files.commit(folder)
    except OSError as error:
        raise UserError(
            f"Cannot write the cache folder {folder.parent}: {error.strerror or error}.",
            "Free some space there, or set data.cache to another folder.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, examples: Iterable[Example], meta: Mapping[str, Any]) -> None:
    fields: dict[str, dict[str, Any]] = {}
    lengths: list[int] = []
    with ExitStack() as opened:
        writers: dict[str, Any] = {}
        for example in examples:
            if not fields:
                fields = {name: _describe(values) for name, values in example.items()}
                for name in fields:
                    writers[name] = opened.enter_context((folder / f"{name}.bin").open("wb"))
            _check(example, fields, len(lengths))
            for name, values in example.items():
                writers[name].write(np.ascontiguousarray(values).data)
            lengths.append(len(next(iter(example.values()))))
        for writer in writers.values():
            writer.flush()
            os.fsync(writer.fileno())
    np.save(folder / LENGTHS, np.array(lengths, np.int64))
    described = {"fields": fields, "meta": dict(meta)}
    files.write_atomic(folder / DESCRIPTION, json.dumps(described, indent=1))


def _describe(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": values.dtype.str, "shape": list(values.shape[1:])}


def _check(example: Example, fields: Mapping[str, Any], number: int) -> None:
    """Raise a ValueError if an example differs from the first one in fields, types or shapes."""
    described = {name: _describe(values) for name, values in example.items()}
    if described != fields:
        raise ValueError(f"example {number} is {described}, and the first one is {fields}")
    if len({len(values) for values in example.values()}) != 1:
        raise ValueError(f"example {number} has fields of differing lengths")


def _is_whole(folder: Path) -> bool:
    """Return whether the entry was committed and its files still have their sizes."""
    if not files.is_committed(folder):
        return False
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        total = int(np.load(folder / LENGTHS).sum())
        return isinstance(described["meta"], dict) and all(
            (folder / f"{name}.bin").stat().st_size == total * _bytes_each(field)
            for name, field in described["fields"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError):
        return False  # damaged from outside: built again


def _bytes_each(field: Mapping[str, Any]) -> int:
    """Return the bytes of one value; an array of Python objects would be addresses of memory."""
    dtype = np.dtype(field["dtype"])
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return int(np.prod(field["shape"])) * dtype.itemsize


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, mode="r", shape=shape)
