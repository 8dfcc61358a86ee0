"""Random access to the rows of a file or a split: what every kind of data provides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Row = dict[str, Any]


# Where a row's objects have their classes, under the names that data sets have for it.
OBJECT_CLASSES = ("label", "category", "categories")


class ClassId(int):
    """Id of a class that the data names; the name of another class may look like it."""


class CornerObjects(dict[str, Any]):
    """Objects whose boxes are left, top, right, bottom in pixels, since their file has a format."""


def as_class_ids(value: Any) -> Any:
    """Return the ids in a cell, those of a list or of a row's objects too, as `ClassId`."""
    if isinstance(value, int):
        return ClassId(value)
    if isinstance(value, list):
        return [as_class_ids(one) for one in value]
    if isinstance(value, dict):
        own = {name: as_class_ids(value[name]) for name in OBJECT_CLASSES if name in value}
        return {**value, **own}
    return value


class Reader(Protocol):
    """All rows of a file or a split, in its own order."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that every row has a value for."""

    @property
    def identity(self) -> str:
        """A hash of the content."""

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the rows start from."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes in order of class id; None if the data does not name them."""


@dataclass(frozen=True)
class MemoryReader:
    """Rows in memory, such as texts that a person typed; see `Reader`."""

    records: Sequence[Row]
    identity: str = ""
    folder: Path = Path()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that every row has a value for."""
        return tuple(self.records[0]) if self.records else ()

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        chosen = [self.records[number] for number in numbers]
        return chosen if columns is None else [{c: row[c] for c in columns} for row in chosen]

    def class_names(self, column: str) -> None:
        """Return None: rows in memory name no classes."""
