"""Kinds of columns by what their cells hold: texts, categories, numbers, images, lists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxft.analysis.first_config.sample import Sample
from jaxft.data.sources.images import ENDINGS
from jaxft.data.text.template import is_missing
from jaxft.errors import UserError

Kind = Literal[
    "text", "category", "number", "id", "image", "words", "messages", "objects", "labels", "empty"
]
MOST_CLASSES = 200
ID_NAMES = ("id", "index", "idx", "uuid", "guid", "file", "filename", "path", "url", "key", "")
MANY = 1000  # whole numbers; if all differ, they are identifiers
SENTENCE = 3.0  # mean words of a column of texts, at least


@dataclass(frozen=True)
class Column:
    """A column of a sample.

    Attributes:
        name: its name.
        kind: what its cells hold; `labels` is a list of classes per row.
        missing: the number of empty cells.
        words: mean words of its texts.
        values: how often each value of a category, or of a number with few values, occurs.
        distinct: the number of different values.
        whole: whether all of its numbers are whole.
        spread: standard deviation of its numbers.
    """

    name: str
    kind: Kind
    missing: int = 0
    words: float = 0.0
    values: Mapping[str, int] | None = None
    distinct: int = 0
    whole: bool = False
    spread: float = 0.0

    @property
    def binary(self) -> bool:
        """Return whether it holds two values."""
        return self.distinct == 2 and self.kind in ("category", "number")


def describe_columns(sample: Sample, folder_names: bool = False) -> dict[str, Column]:
    """Return the kind of each column of a sample, by name.

    Args:
        sample: the rows.
        folder_names: whether the labels are names of folders, which are classes, also as numbers.
    """
    if folder_names:
        names = Counter(str(row["label"]) for row in sample.rows)
        label = Column("label", "category", values=names, distinct=len(names))
        return {"image": Column("image", "image", distinct=len(sample.rows)), "label": label}
    columns = {}
    for name in sample.columns:
        cells = [row[name] for row in sample.rows]
        columns[name] = _column(name, cells, sample.classes.get(name))
    return columns


def check_header(columns: Mapping[str, Column]) -> None:
    """Raise a UserError where the header of a CSV is a row: a class or a number is its own name.

    Columns that are numbered from 0 or 1 have such names.
    """
    numbered = [[str(number + first) for number in range(len(columns))] for first in (0, 1)]
    if list(columns) in numbered:
        return
    for name, one in columns.items():
        if name in (one.values or ()) and one.distinct > 1:
            raise UserError(
                f"The first line does not name the columns: '{name}' is also a value below it.",
                "Put a line above it that names them, such as text,label.",
            )


def _column(name: str, cells: Sequence[Any], classes: Sequence[str] | None) -> Column:
    values = [cell for cell in cells if not is_empty(cell)]
    missing = len(cells) - len(values)
    if not values:
        return Column(name, "empty", missing)
    if all(isinstance(value, list | tuple | np.ndarray) for value in values):
        return Column(name, _kind_of_lists(values), missing)
    if all(isinstance(value, bytes | dict) for value in values):
        return Column(name, _kind_of_records(values), missing)
    if classes is not None:
        names = Counter(classes[int(value)] for value in values if 0 <= int(value) < len(classes))
        return Column(name, "category", missing, values=names, distinct=len(names))
    numbers = _numbers(values)
    if numbers is not None:
        return _of_numbers(name, numbers, missing)
    return _of_texts(name, [str(value) for value in values], missing)


def is_empty(cell: Any) -> bool:
    """Return whether a cell holds nothing."""
    return isinstance(cell, str | float | None) and is_missing(cell)


def _kind_of_lists(values: Sequence[Any]) -> Kind:
    first = next((value[0] for value in values if len(value)), None)
    if isinstance(first, dict):
        speaks = any(keys <= first.keys() for keys in ({"role", "content"}, {"from", "value"}))
        return "messages" if speaks else "objects"
    if isinstance(first, str):
        distinct = {item for value in values for item in value}
        return "labels" if len(distinct) <= MOST_CLASSES and _repeats_none(values) else "words"
    if isinstance(first, np.ndarray) or (isinstance(values[0], np.ndarray) and values[0].ndim == 3):
        return "image"
    return "words"  # tags as numbers


def _repeats_none(values: Sequence[Any]) -> bool:
    """Return whether no list holds an item twice, as labels do and words do not."""
    return all(len(set(value)) == len(value) for value in values)


def _kind_of_records(values: Sequence[Any]) -> Kind:
    first = values[0]
    if isinstance(first, dict) and not {"bytes", "path"} & first.keys():
        return "objects"
    return "image"


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Return the cells as numbers; None if one is none. True and False are classes."""
    if any(isinstance(value, bool) for value in values):
        return None
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None


def _of_numbers(name: str, numbers: np.ndarray, missing: int) -> Column:
    whole = bool((numbers == np.round(numbers)).all())
    counts = Counter(_written(number) for number in numbers.tolist())
    unique = len(counts) == len(numbers) and whole
    counted = bool(numbers.max() - numbers.min() == len(numbers) - 1) or len(numbers) >= MANY
    kind: Kind = "id" if unique and (counted or _named_as_id(name)) else "number"
    values = counts if len(counts) <= MOST_CLASSES else None
    return Column(name, kind, missing, 0.0, values, len(counts), whole, float(numbers.std()))


def _written(number: float) -> str:
    return str(int(number)) if number == math.floor(number) else str(number)


def _named_as_id(name: str) -> bool:
    lower = name.strip().lower()
    return lower in ID_NAMES or lower.endswith("_id") or lower.startswith("unnamed")


def _of_texts(name: str, texts: Sequence[str], missing: int) -> Column:
    counts = Counter(texts)
    words = sum(len(text.split()) for text in texts) / len(texts)
    if all(text.lower().endswith(ENDINGS) for text in texts):
        return Column(name, "image", missing, distinct=len(counts))
    repeated = len(counts) <= min(MOST_CLASSES, max(2, len(texts) // 5))
    if repeated and (words < 2 * SENTENCE or len(counts) <= len(texts) // 20):
        return Column(name, "category", missing, words, counts, len(counts))
    unbroken = any("\u3040" <= c <= "\u9fff" for text in texts[:50] for c in text)
    if words < SENTENCE and not unbroken:
        return Column(name, "id", missing, words, distinct=len(counts))
    return Column(name, "text", missing, words, distinct=len(counts))
