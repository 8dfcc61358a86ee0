"""Labels and texts as data sources hold them: names from the data, each row's label as a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxft.data.sources.open import Source
from jaxft.data.text.template import is_missing
from jaxft.errors import UserError, did_you_mean

MOST_NAMED = 10  # labels in a sentence
FILL = "Fill it in, leave the row out, or say data.on_bad_row=skip."
ONES = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}


class BadValue(ValueError):
    """What is wrong with a row, as the end of a sentence that begins with where the row is."""

    def __init__(self, said: str, hint: str = ""):
        self.said, self.hint = said, hint
        super().__init__(said)


@dataclass(frozen=True)
class Labels:
    """The labels of a source's rows.

    Attributes:
        values: `[examples]` int32 class ids, `[examples, C]` float32 of 0 and 1, or `[examples]`
            float32 numbers.
        weights: what each counts in the loss, of the same shape; None where all count the same.
    """

    values: np.ndarray
    weights: np.ndarray | None = None

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """A batch's `labels` and perhaps `loss_weights`: `[R, S, ...]`, 0 where there is none.

        Args:
            index: `[rows, segments]` example numbers, -1 for none.
        """
        found = {"labels": self.values, "loss_weights": self.weights}
        return {name: _taken(values, index) for name, values in found.items() if values is not None}

    def mixed(self, index: np.ndarray, other: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
        """A batch's labels where each example is a mixture of two.

        Args:
            index, other: `[rows, segments]` numbers of the two, -1 for none.
            shares: `[rows, segments]` of the other.

        Returns:
            `labels`; of classes `mixed_labels` and `mixed_shares` too. Numbers are mixed as such.
        """
        batch, second = self.batch(index), _taken(self.values, other)
        if self.values.dtype.kind == "f":
            wide = shares.reshape(*shares.shape, *[1] * (self.values.ndim - 1))
            mixed = (1 - wide) * batch["labels"] + wide * second
            return batch | {"labels": mixed.astype(np.float32)}
        return batch | {"mixed_labels": second, "mixed_shares": shares.astype(np.float32)}


def _taken(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    taken = values[np.maximum(index, 0)]
    there = (index >= 0).reshape(*index.shape, *[1] * (values.ndim - 1))
    return np.where(there, taken, 0).astype(values.dtype)


def column_of(source: Source, column: str) -> Iterator[Any]:
    """Each row's value in a column.

    Raises:
        UserError: the source has no such column.
    """
    check_column(source, column)
    return (row[column] for _, row in source.each([column]))


def check_column(source: Source, column: str) -> None:
    """Raise a UserError that lists the source's columns where one is missing."""
    if column not in source.columns:
        raise UserError(
            f"{source.spec}: there is no column '{column}'.",
            f"Its columns: {', '.join(source.columns)}.",
        )


def label_names(source: Source, column: str, named: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in order of class id: those named, else the data's own, else its values.

    Args:
        source: the training rows; an empty cell is no class.
        column: holds the label, or a list of labels.
        named: the config's names, or None.
    """
    given = named or source.class_names(column)
    if given:
        return tuple(given)
    values: set[str] = set()
    for cell in column_of(source, column):
        values |= {str(one) for one in (cell if isinstance(cell, list) else [cell])} - {"None"}
    values = {value for value in values if value.strip()}
    numeric = all(value.lstrip("-").isdigit() for value in values)
    return tuple(sorted(values, key=int if numeric else str))


def read_rows(
    source: Source, columns: Sequence[str], parse: Callable[[Mapping[str, Any]], Any]
) -> list[Any]:
    """Each row's label or text, as `parse` reads it.

    Raises:
        UserError: a column is missing, or `parse` raised BadValue; it names the row.
    """
    for column in columns:
        check_column(source, column)
    found = []
    for number, row in source.each(columns):
        try:
            found.append(parse(row))
        except BadValue as bad:
            raise UserError(f"{source.place(number)} {bad.said}.", bad.hint) from None
    return found


def class_id(cell: Any, column: str, names: Sequence[str]) -> int:
    """The class id of a cell: a class's name, or its id.

    Raises:
        BadValue: it is empty, or no class.
    """
    value = str(cell)
    if cell is None or not value.strip():
        raise BadValue(f"has no {column}", FILL)
    found = _ids(tuple(names)).get(value)
    if found is None:
        more = ", ..." if len(names) > MOST_NAMED else ""
        raise BadValue(
            f"has the label '{value}', which is not among the train set's labels "
            f"({', '.join(names[:MOST_NAMED])}{more})",
        )
    return found


@lru_cache(maxsize=8)
def _ids(names: tuple[str, ...]) -> dict[str, int]:
    index = {name: number for number, name in enumerate(names)}
    return index | {str(number): number for number in range(len(names)) if str(number) not in index}


def class_flags(cell: Any, column: str, names: Sequence[str]) -> np.ndarray:
    """The classes that a cell lists, as `[C]` float32 of 0 and 1.

    Raises:
        BadValue: it is no list, or one of them is no class.
    """
    if not isinstance(cell, list):
        raise BadValue(
            f"has no list of labels in {column} but {cell!r}",
            "Write rows as JSON lines, or give one column of 0 and 1 a label: task.label=[a, b].",
        )
    flags = np.zeros(len(names), np.float32)
    for one in cell:
        flags[class_id(one, column, names)] = 1
    return flags


def one_or_zero(cell: Any, column: str) -> bool:
    """Whether a label is there.

    Raises:
        BadValue: the cell is neither 0 nor 1.
    """
    if is_missing(cell):
        raise BadValue(f"has no {column}", FILL)
    found = ONES.get(str(cell).strip().lower())
    if found is None:
        raise BadValue(f"has {cell!r} in {column}, which is neither 0 nor 1")
    return found


def number_of(cell: Any, column: str) -> float:
    """The number in a cell.

    Raises:
        BadValue: it is empty, or no finite number.
    """
    if is_missing(cell):
        raise BadValue(f"has no {column}", FILL)
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise BadValue(f"has no number in {column} but {cell!r}")
    return value


def text_of(cell: Any, column: str, empty: bool = False) -> str:
    """The text in a cell.

    Args:
        cell: the cell.
        column: it is of.
        empty: whether a text of no letter will do.

    Raises:
        BadValue: it is empty, or no text.
    """
    if not empty and (cell is None or not str(cell).strip()):
        raise BadValue(f"has no {column}", FILL)
    if not isinstance(cell, str):
        raise BadValue(f"has no text in {column} but {cell!r}")
    return cell


def check_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raise a UserError where a weight is given to what is no class."""
    for name in wanted:
        if name not in names:
            raise UserError(f"task.class_weights: '{name}' is no label.", did_you_mean(name, names))
