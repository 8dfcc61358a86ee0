"""CSV, JSON-lines and CoNLL files as random-access rows.

A file is scanned once: every row is checked and its bytes noted, so a file may exceed memory.
"""

from __future__ import annotations

import csv
import io
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxft.bounds import MOST_COLUMNS, MOST_ROW_BYTES, MOST_ROWS
from jaxft.data.sources.reader import Row
from jaxft.errors import UserError
from jaxft.numbers import size
from jaxft.storage.files import sha256
from jaxft.storage.json_files import TOO_DEEP, json_fault
from jaxft.storage.missing import mend_of_missing

BOM = b"\xef\xbb\xbf"
CONLL_COLUMNS = ("tokens", "tags")
DOCUMENT = "-DOCSTART-"
ARRAY = "begins a JSON array; jsonl: reads one object per line (jq -c '.[]' FILE > rows.jsonl)"
NAMED = 20  # columns in a message
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class FileReader:
    """The rows of one text file.

    Attributes:
        path: the file.
        columns: names that every row has a value for.
        identity: sha256 of the file's bytes.
        spans: `[rows, 2]` first byte of each row and the byte after its last.
        parse: a row's text and the columns of the file -> the row.
    """

    path: Path
    columns: tuple[str, ...]
    identity: str
    spans: np.ndarray
    parse: Callable[[str, Sequence[str]], Row]

    @property
    def folder(self) -> Path:
        """Return the folder that relative paths in the rows start from."""
        return self.path.parent

    def __len__(self) -> int:
        return len(self.spans)

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        rows = []
        with self.path.open("rb") as file, _long_fields():
            for number in numbers:
                start, end = self.spans[number].tolist()
                file.seek(start)
                row = self.parse(file.read(end - start).decode(), self.columns)
                rows.append(row if columns is None else {name: row[name] for name in columns})
        return rows

    def class_names(self, column: str) -> None:
        """Return None: a text file does not name its classes."""
        return


def open_csv(path: Path) -> FileReader:
    """Open a file in UTF-8 with fields between commas, whose first line names the columns.

    A .tsv has tabs, and a file whose first line has no comma the semicolons, tabs or bars there.

    Raises:
        UserError: no such file, no header, a column named twice; or, by row, text that is not
            UTF-8, a wrong number of fields, a quote that is never closed.
    """
    with _open(path) as file, _long_fields():
        separator = _separator(path)
        lines = _Lines(file, path)
        table = csv.reader(lines, delimiter=separator, strict=True)
        columns: list[str] = []
        spans = array("q")
        try:
            for fields in table:
                if fields and not columns:
                    check_columns(columns := fields, path)
                elif fields:
                    lines.check(len(fields) == len(columns), _field_count(fields, columns))
                    spans.extend(lines.end_row())
                lines.start = lines.end
        except csv.Error as error:
            raise UserError(
                f"{path}: row {lines.row} is not CSV ({error}).",
                f"Put fields with {SEPARATORS[separator]}, quotes or line ends in double quotes.",
            ) from None
    if not columns:
        raise UserError(f"{path}: the file is empty; its first line must name the columns.")
    parse = partial(_parse_csv, separator)
    return FileReader(path, tuple(columns), sha256(path), _as_spans(spans), parse)


def _separator(path: Path) -> str:
    """Return what separates the fields of a table."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with _open(path) as file:
        lines = iter(lambda: file.readline(MOST_ROW_BYTES), b"")
        header = next((line for line in lines if line.strip()), b"").decode(errors="replace")
    fields = next(csv.reader([header.replace("\r", "")]), [""])  # the rows refuse one
    return next((one for one in SEPARATORS if len(fields) == 1 and one in fields[0]), ",")


def open_jsonl(path: Path) -> FileReader:
    """Open a UTF-8 file with one JSON object per line; `columns` are the keys in every row.

    Raises:
        UserError: no such file; or, by row, text that is not UTF-8 or not a JSON object.
    """
    columns: list[str] = []
    spans = array("q")
    with _open(path) as file:
        lines = _Lines(file, path)
        for text in lines:
            if text.strip():
                row = _load_object(text, lines)
                columns = list(row) if not spans else [name for name in columns if name in row]
                spans.extend(lines.end_row())
            lines.start = lines.end
    return FileReader(path, tuple(columns), sha256(path), _as_spans(spans), _parse_json)


def open_conll(path: Path) -> FileReader:
    """Return a file in UTF-8 with a word and its tag a line, and an empty line after each sentence.

    The word is the first of a line's fields and the tag the last; tabs stand between them, or
    spaces where there are no tabs. A row has `tokens` and `tags`; -DOCSTART- is no sentence.

    Raises:
        UserError: no such file; or, by row, text that is not UTF-8 or a word without a tag.
    """
    spans = array("q")
    with _open(path) as file:
        lines = _Lines(file, path)
        end = lines.end
        for text in lines:
            if text.strip() and not text.startswith(DOCUMENT):
                fields = _fields(text)
                lines.check(len(fields) > 1 and all(fields), f"has no tag ('{fields[0]}')")
                end = lines.end
                continue
            if end > lines.start:
                spans.extend((lines.start, end))
                lines.end_row()
            lines.start = end = lines.end
        if end > lines.start:
            spans.extend((lines.start, end))
    return FileReader(path, CONLL_COLUMNS, sha256(path), _as_spans(spans), _parse_conll)


def _fields(line: str) -> list[str]:
    """Return the word of a line and its tag; the word alone where there is no more."""
    fields = line.split("\t") if "\t" in line else line.split()
    return [fields[number].strip() for number in ((0, -1) if len(fields) > 1 else (0,))]


def _parse_conll(text: str, columns: Sequence[str]) -> Row:
    pairs = [_fields(line) for line in text.split("\n") if line.strip()]
    return dict(zip(columns, map(list, zip(*pairs, strict=True)), strict=True))


class _Lines:
    """The decoded lines of a file, and the position: `start` of the row, `end`, `line`, `row`."""

    def __init__(self, file: BinaryIO, path: Path):
        self.path = path
        self.row = 1  # number of the row being read; the header is none
        self.line = 0
        self.end = len(BOM) if file.read(len(BOM)) == BOM else 0
        self.start = self.end
        file.seek(self.end)
        self._file = file

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MOST_ROW_BYTES + 1)
        if not raw:
            raise StopIteration
        self.end += len(raw)
        self.line += 1
        right = self.end - self.start <= MOST_ROW_BYTES
        self.check(right, f"is longer than {size(MOST_ROW_BYTES)}, the most that is read")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: row {self.row} (line {self.line}) is not UTF-8: byte "
                f"0x{raw[error.start]:02x} at column {error.start + 1}.",
                "Save the file as UTF-8.",
            ) from None

    def end_row(self) -> tuple[int, int]:
        """Count a row that has been read, and return its first byte and the one after its last."""
        self.check(self.row <= MOST_ROWS, f"is one too many: at most {MOST_ROWS:,} are read")
        self.row += 1
        return self.start, self.end

    def check(self, right: bool, fault: str) -> None:
        """Raise a UserError that says where the fault is, unless `right`."""
        if not right:
            raise UserError(f"{self.path}: row {self.row} (line {self.line}) {fault}.")


def check_columns(names: Sequence[str], where: str | Path) -> None:
    """Raise a UserError where a table has too many columns, or two of one name."""
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{where}: there are {len(names):,} columns; at most {MOST_COLUMNS:,} are read."
        )
    common, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"{where}: two columns are named '{common}'.", "Rename one.")


def _field_count(fields: Sequence[str], columns: Sequence[str]) -> str:
    names = ", ".join(columns[:NAMED]) + (", ..." if len(columns) > NAMED else "")
    return f"has {len(fields)} fields, and the header has {len(columns)} ({names})"


def _load_object(text: str, lines: _Lines) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        if lines.row == 1 and text.lstrip().startswith("["):
            lines.check(False, ARRAY)
        lines.check(False, f"is not JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        lines.check(False, TOO_DEEP)
    except ValueError as error:  # a number of thousands of digits
        lines.check(False, f"is not JSON ({error})")
    fault = json_fault(row, text)
    lines.check(not fault, fault)
    if isinstance(row, list) and lines.row == 1:
        lines.check(False, ARRAY)
    lines.check(isinstance(row, dict), f"is not a JSON object but {type(row).__name__}")
    lines.check(
        len(row) <= MOST_COLUMNS, f"has {len(row):,} keys; at most {MOST_COLUMNS:,} are read"
    )
    return row


def _parse_csv(separator: str, text: str, columns: Sequence[str]) -> Row:
    fields = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    return dict(zip(columns, fields, strict=True))


def _parse_json(text: str, columns: Sequence[str]) -> Row:
    row = json.loads(text)
    return {name: row[name] for name in columns}


def _as_spans(spans: array[int]) -> np.ndarray:
    return np.frombuffer(spans, np.int64).reshape(-1, 2) if spans else np.empty((0, 2), np.int64)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Raise the csv module's limit on the length of a field, and put it back."""
    before = csv.field_size_limit(MOST_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def check_is_file(path: Path) -> None:
    """Raise a UserError, with what to do, if there is no such file."""
    if not path.is_file():
        raise UserError(f"There is no file '{path}'.", mend_of_missing(path))


def _open(path: Path) -> BinaryIO:
    check_is_file(path)
    return path.open("rb")
