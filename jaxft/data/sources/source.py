"""Source: the rows that a source string names, with random access."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.sources.joined import JoinedReader
from jaxft.data.sources.reader import MemoryReader, Reader, Row
from jaxft.errors import UserError

CHUNK = 256  # rows in memory at a time


@dataclass(frozen=True)
class Source:
    """The rows that a source string names, with random access.

    Attributes:
        spec: the source string.
        fingerprint: sha256 of the content, the slice, `where` and the seed; where the files lie
            does not count, so that a moved file keeps its caches.
        order: `[rows]` the reader's row number of each of our rows.
        reader: reads the rows.
        image_folder: a folder that paths in the rows may lead into, besides the rows' own.
        fields: columns that are fields of another: `translation.en` is the field `en` of the
            column `translation`, and None where a row lacks it.
    """

    spec: str
    fingerprint: str
    order: np.ndarray
    reader: Reader
    image_folder: Path | None = None
    fields: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that every row has a value for."""
        return (*self.reader.columns, *self.fields)

    def with_fields(self, columns: Iterable[str]) -> Source:
        """Return the source with those of these columns that are fields of others."""
        new = [name for name in columns if name not in self.columns and self.has(name)]
        return replace(self, fields=(*self.fields, *dict.fromkeys(new)))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Row:
        return self.rows([index])[0]

    def rows(self, indices: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows at these indices, in this order, with `columns` (None: all) of each."""
        numbers = self.order[np.fromiter(indices, np.int64)]
        names = self.columns if columns is None else columns
        if all(name in self.reader.columns for name in names):
            return self.reader.rows(numbers, columns)
        owners = {name: self._owner(name) for name in names}
        rows = self.reader.rows(numbers, list(dict.fromkeys(owners.values())))
        return [
            {name: _field(row[owner], name[len(owner) :]) for name, owner in owners.items()}
            for row in rows
        ]

    def has(self, column: str) -> bool:
        """Return whether there is such a column, or one of the first rows has such a field."""
        if column in self.columns or self._owner(column) not in self.columns:
            return column in self.columns
        first = self.rows(range(min(len(self), CHUNK)), [column])
        return any(row[column] is not None for row in first)

    def _owner(self, name: str) -> str:
        """Return the column that holds what a name asks for: itself, or what precedes a period."""
        return name if name in self.reader.columns else name.partition(".")[0]

    def each(
        self,
        columns: Sequence[str] | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
    ) -> Iterator[tuple[int, Row]]:
        """Yield the rows at these indices (None: all), each behind its own; few are in memory."""
        asked = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        for start in range(0, len(asked), CHUNK):
            chunk = asked[start : start + CHUNK]
            yield from zip(chunk.tolist(), self.rows(chunk, columns), strict=True)

    @property
    def folder(self) -> Path:
        """The common folder of all tables."""
        return Path(self.reader.folder)

    def place(self, index: int) -> str:
        """Return the name of a row in messages: the source, and the row number in it."""
        part, inside = self._part(index)
        if part is not self:
            return part.place(inside)
        number = int(self.order[index])
        if not isinstance(self.reader, JoinedReader):
            return f"{self.spec}: row {number + 1}"
        owner, inside = self.reader.locate(number)
        return f"{self.reader.names[owner]}: row {inside + 1}"

    def path_of(self, index: int, name: str) -> Path:
        """Return the path of a file that a row names, from the folder of the row's table.

        A table may be a stranger's, and what its paths lead to is shown in reports and copied into
        data sets; so they may lead out of its folder, by links too, into `image_folder` only. What
        a person typed may lead anywhere.

        Raises:
            UserError: the path leads elsewhere.
        """
        part, inside = self._part(index)
        if part is not self:
            return part.path_of(inside, name)
        folder = self.folder_of(index)
        path = folder / name
        if isinstance(self.reader, MemoryReader):
            return path
        if "\0" not in name:
            above = Path(os.path.realpath(path)).parents
            allowed = (one for one in (folder, self.image_folder) if one is not None)
            if any(Path(os.path.realpath(one)) in above for one in allowed):
                return path
        raise UserError(
            f"{self.place(index)}: the path '{name}' leads out of the folder of its table.",
            "If you trust the table, name the folder that it leads into: data.image_folder, or "
            "--image-folder of jaxft data build.",
        )

    def folder_of(self, index: int) -> Path:
        """Return the folder that relative paths in a row start from: that of its own table."""
        part, inside = self._part(index)
        if part is not self:
            return part.folder_of(inside)
        if not isinstance(self.reader, JoinedReader):
            return self.folder
        owner, _ = self.reader.locate(int(self.order[index]))
        return Path(self.reader.parts[owner].folder)

    def _part(self, index: int) -> tuple[Source, int]:
        """Return the source of a row, one of a mixture's or this one, and the row's index in it."""
        if not isinstance(self.reader, JoinedReader):
            return self, index
        owner, inside = self.reader.locate(int(self.order[index]))
        part = self.reader.parts[owner]
        return (part, inside) if isinstance(part, Source) else (self, index)

    def part_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the part of a mixture that each row belongs to; 0 if it is no mixture."""
        if not self.mixed:
            return np.zeros(len(rows), np.int64)
        assert isinstance(self.reader, JoinedReader)
        return self.reader.part_of(self.order[rows])

    @property
    def mixed(self) -> tuple[Source, ...]:
        """The sources that this one mixes; none where it is no mixture."""
        parts = self.reader.parts if isinstance(self.reader, JoinedReader) else ()
        return tuple(part for part in parts if isinstance(part, Source))

    @property
    def identity(self) -> str:
        """The fingerprint: a source may be a part of another."""
        return self.fingerprint

    def without(self, indices: Sequence[int]) -> Source:
        """Return the source without the rows at these indices; itself where there are none."""
        if not len(indices):
            return self
        text = f"{self.fingerprint} without {list(indices)}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return replace(self, fingerprint=digest, order=np.delete(self.order, indices))

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes of `column` in order of class id, where the data names them."""
        return self.reader.class_names(column)


def _field(cell: Any, path: str) -> Any:
    """Return a field of a cell by its path behind the column, `.en`; without one, the cell."""
    for key in path.split(".")[1:]:
        cell = cell.get(key) if isinstance(cell, Mapping) else None
    return cell
