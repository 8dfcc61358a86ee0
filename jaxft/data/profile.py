"""Statistics of a source before any model reads it: columns, labels, lengths, duplicates."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.sources.images import ENDINGS
from jaxft.data.sources.reader import ClassId, Row
from jaxft.data.sources.source import Source
from jaxft.data.text.template import is_missing

GLANCE = 1000  # rows that a column is guessed by
SHOWN = 3  # examples
MOST_CHARACTERS = 200  # of an example's cell
MOST_LABELS = 50
MOST_CLASSES = 30  # of numbers in a column of labels
BINS = (0, 5, 10, 20, 40, 80, 160, 320, 640, 1280)  # words from; the last is open
IMBALANCE = 10.0  # the commonest class over the rarest, from which on a person is told


@dataclass(frozen=True)
class TextColumns:
    """The columns of text and label in a source.

    Attributes:
        texts: the columns of the text; their values are joined.
        label: the column of the class or number; None if there is none.
        render: makes the text that a model reads of a row, if it is more than the joined values.
        numeric: whether the label is a number; None if that is to be guessed.
    """

    texts: tuple[str, ...]
    label: str | None
    render: Callable[[Row], str] | None = None
    numeric: bool | None = None

    def text(self, row: Row) -> str:
        """Return a row's text."""
        return text_of(row, self.texts) if self.render is None else self.render(row)


def guess_columns(source: Source, text: str | None = None, label: str | None = None) -> TextColumns:
    """Return the text and label columns of a source: those named, or the usual ones.

    Args:
        source: the rows.
        text: the column of the text; None for `text`, `tokens`, or that with the longest texts.
        label: the column of the class; None for `label` or `tags`, where there is one.
    """
    texts = [name for name in (text, "text", "tokens") if name in source.columns][:1]
    if not texts:
        rows = source.rows(range(min(len(source), GLANCE)))
        sizes = {
            name: sum(len(row[name]) for row in rows if isinstance(row[name], str))
            for name in source.columns
        }
        texts = [max(sizes, key=lambda name: sizes[name])] if any(sizes.values()) else []
    labels = [name for name in (label, "label", "tags") if name in source.columns]
    return TextColumns(tuple(texts), label or next(iter(labels), None))


def text_of(row: Row, columns: Sequence[str]) -> str:
    """Return a row's text: its columns' values in one line; a list of words is a text."""
    parts = []
    for name in columns:
        value = row[name]
        parts.append(" ".join(map(str, value)) if isinstance(value, list) else str(value or ""))
    return " ".join(parts)


def texts_of(source: Source, reading: TextColumns, indices: Sequence[int]) -> list[str]:
    """Return the texts of some rows."""
    return [reading.text(row) for row in source.rows(indices, reading.texts)]


def profile(source: Source, reading: TextColumns) -> dict[str, Any]:
    """Count and measure the rows of a source.

    Args:
        source: the rows.
        reading: its columns of text and label.

    Returns:
        `source`, `rows`, `columns` (name, type, empty), `labels` (label -> rows, the most frequent
        50) and `distinct` (their count), or `numbers` (mean, deviation, least, greatest) where the
        label is a number; `words` (a histogram: `from`, `to`, `rows`; and mean, median, longest),
        `examples`, whose text is the one that the model reads.
    """
    empty, kinds = Counter[str](), {name: Counter[str]() for name in source.columns}
    labels, words = Counter[str](), []
    for _, row in source.each():
        for name, value in row.items():
            empty[name] += is_missing(value)
            kinds[name][_type_of(value)] += not is_missing(value)
        if reading.label is not None:
            labels.update(_labels_of(row[reading.label]))
        if reading.texts:
            words.append(len(reading.text(row).split()))
    names = source.class_names(reading.label) if reading.label else None
    numbers = None if names else _numbers(labels, reading.numeric)
    return {
        "source": source.spec,
        "rows": len(source),
        "columns": [
            {"name": name, "type": _kind(kinds[name]), "empty": empty[name]}
            for name in source.columns
        ],
        "labels": {} if numbers else _named(labels, names),
        "distinct": len(labels),
        "numbers": numbers,
        "words": _histogram(np.array(words, np.int64)) if words else None,
        "examples": [
            _short(_as_read(row, reading)) for row in source.rows(range(min(SHOWN, len(source))))
        ],
    }


def _as_read(row: Row, reading: TextColumns) -> Row:
    """Return a row with the text that the model reads in place of the cells that it is made of."""
    if reading.render is None:
        return row
    label = {} if reading.label is None else {reading.label: row[reading.label]}
    return {"text": reading.render(row), **label}


def _numbers(labels: Counter[str], numeric: bool | None) -> dict[str, float] | None:
    """Summarise labels that are numbers; None if they are classes.

    A guess takes numbers for classes unless there are more than `MOST_CLASSES` of them.
    """
    if numeric is False or (numeric is None and len(labels) <= MOST_CLASSES):
        return None
    if not labels or not all(map(_is_number, labels)):
        return None
    values = np.array([float(label) for label in labels])
    counts = np.array(list(labels.values()))
    mean = float(np.average(values, weights=counts))
    return {
        "mean": mean,
        "deviation": float(np.sqrt(np.average((values - mean) ** 2, weights=counts))),
        "least": float(values.min()),
        "greatest": float(values.max()),
    }


def _type_of(value: Any) -> str:
    """Return the name of a cell's type; a text file's numbers are texts that hold one."""
    if isinstance(value, str) and _is_number(value):
        return "number"
    return "int" if isinstance(value, ClassId) else type(value).__name__


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def row_digests(source: Source, columns: Sequence[str]) -> np.ndarray:
    """Return a hash of each row's values in some columns, ignoring case and spaces: `[rows]`.

    A path of an image counts from its table's folder: files of one name in two folders differ.
    """
    digests = np.empty(len(source), np.uint64)
    for number, row in source.each(columns):
        digest = hashlib.blake2b(digest_size=8)
        for value in row.values():
            digest.update(_plain(_located(source, number, value)) + b"\0")
        digests[number] = int.from_bytes(digest.digest(), "little")
    return digests


def rare_class(counts: Mapping[str, int]) -> tuple[str, float] | None:
    """Return the rarest class and its share, where the commonest has ten times its rows or more."""
    there = {name: many for name, many in counts.items() if many}
    if len(there) < 2:
        return None
    rarest = min(there, key=lambda name: there[name])
    if max(there.values()) < IMBALANCE * there[rarest]:
        return None
    return rarest, there[rarest] / sum(there.values())


def _labels_of(value: Any) -> list[str]:
    """Return the labels in a cell; the distinct ones of a list."""
    if isinstance(value, list | np.ndarray):
        return sorted({str(one) for one in value})
    return [] if is_missing(value) else [str(value)]


def _named(labels: Counter[str], names: Sequence[str] | None) -> dict[str, int]:
    """Return the number of rows of each label, the most common first, with class names if known."""
    ids = {str(number): name for number, name in enumerate(names or ())}
    return {ids.get(label, label): many for label, many in labels.most_common(MOST_LABELS)}


def _kind(kinds: Counter[str]) -> str:
    common = [name for name, many in kinds.most_common() if many]
    return ", ".join(common) or "empty"


def _histogram(words: np.ndarray) -> dict[str, Any]:
    edges = [*BINS, np.iinfo(np.int64).max]
    counts, _ = np.histogram(words, edges)
    last = int(np.flatnonzero(counts)[-1])
    bins = [
        {"from": start, "to": None if stop == edges[-1] else stop - 1, "rows": int(many)}
        for start, stop, many in zip(edges, edges[1:], counts[: last + 1], strict=False)
    ]
    return {
        "mean": float(words.mean()),
        "median": float(np.median(words)),
        "longest": int(words.max()),
        "histogram": bins,
    }


def _short(row: Row) -> dict[str, Any]:
    """Return a row shortened for people, as JSON can hold it."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            cells[name] = f"{len(value):,} bytes"
        elif isinstance(value, np.ndarray):
            cells[name] = f"array of {' x '.join(map(str, value.shape))}"
        elif isinstance(value, int | float | None):
            cells[name] = value
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            cells[name] = text[:MOST_CHARACTERS] + ("..." if len(text) > MOST_CHARACTERS else "")
    return cells


def _located(source: Source, number: int, value: Any) -> Any:
    """Return the whole path of an image that a row names; any other value as it is."""
    is_image = isinstance(value, str) and value.lower().endswith(ENDINGS)
    return str((source.folder_of(number) / value).absolute()) if is_image else value


def _plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        return value.tobytes()
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return " ".join(text.split()).casefold().encode()
