"""Several readers or sources as one: the files of a pattern, the parts of a mixture."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxft.data.sources.reader import Reader, Row
from jaxft.errors import UserError
from jaxft.storage.buckets import fetched, matching
from jaxft.storage.files import is_bucket

PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class JoinedReader:
    """The rows of several parts, the first one's first; see `Reader`.

    Attributes:
        parts: what is joined.
        names: what a message calls each.
    """

    parts: Sequence[Reader]
    names: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that all parts have."""
        first, *others = (part.columns for part in self.parts)
        return tuple(name for name in first if all(name in other for other in others))

    @property
    def identity(self) -> str:
        """A hash of all content."""
        return hashlib.sha256(" ".join(part.identity for part in self.parts).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Return the common folder of all parts."""
        return Path(os.path.commonpath([part.folder.absolute() for part in self.parts]))

    @cached_property
    def ends(self) -> np.ndarray:
        """`[parts]` the number of the row after each part's last."""
        return np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def part_of(self, numbers: np.ndarray) -> np.ndarray:
        """Return the part that each row belongs to."""
        return np.searchsorted(self.ends, numbers, side="right")

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        asked = np.fromiter(numbers, np.int64)
        wanted = self.columns if columns is None else columns
        owners = self.part_of(asked)
        rows: list[Row] = [{} for _ in asked]
        for owner in np.unique(owners).tolist():
            part, positions = self.parts[owner], np.flatnonzero(owners == owner)
            inside = asked[positions] - (self.ends[owner] - len(part))
            for position, row in zip(positions.tolist(), part.rows(inside, wanted), strict=True):
                rows[position] = row
        return rows

    def locate(self, number: int) -> tuple[int, int]:
        """Return the part of a row, and the row's number there."""
        owner = int(self.part_of(np.array([number]))[0])
        return owner, number - int(self.ends[owner]) + len(self.parts[owner])

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes in order of class id, where a part names them.

        Raises:
            UserError: two parts name them differently, so that an id says two things.
        """
        named = {part.class_names(column) for part in self.parts} - {None}
        if len(named) > 1:
            raise UserError(
                f"{' and '.join(self.names)} name the classes of '{column}' differently, so that "
                "a class id means two things."
            )
        return next(iter(named), None)


def open_files(kind: str, pattern: str, opener: Callable[[Path], Reader]) -> Reader:
    """Open a file, or the files of a pattern such as `part-*.csv`, in the order of their numbers.

    Raises:
        UserError: no file matches the pattern, or one of them cannot be read.
    """
    matches = _matching_files(pattern)
    if matches is None:
        return opener(fetched(pattern).expanduser())
    names = [
        name for name in sorted(matches, key=_natural) if is_bucket(name) or Path(name).is_file()
    ]
    if not names:
        raise UserError(f"{kind}:{pattern}: no file matches this pattern.")
    return JoinedReader([opener(fetched(name)) for name in names], tuple(names))


def _matching_files(pattern: str) -> list[str] | None:
    """Return the names that a pattern matches; None if it is the name of one file."""
    if is_bucket(pattern):
        return matching(pattern) if PATTERN.search(pattern) else None
    path = Path(pattern).expanduser()
    literal = path.exists() or not PATTERN.search(pattern)
    return None if literal else glob.glob(str(path), recursive=True)


def check_local(kind: str, path: str) -> None:
    """Raise a UserError if a source that has to be a local folder is in a bucket."""
    if is_bucket(path):
        raise UserError(
            f"{kind}:{path}: jaxft reads files from a bucket, but no folders.",
            "Copy it to this machine first: gcloud storage cp -r.",
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key under which `part-2` comes before `part-10`."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D+)|(\d+)", name)]
