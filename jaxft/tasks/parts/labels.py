"""Labels and texts of data sources: the classes' names, and the value of each row's cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxft.data.sources.reader import ClassId
from jaxft.data.sources.source import Source
from jaxft.data.text.template import is_missing
from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.examples import values_of

MOST_NAMED = 10  # labels listed in a message
FILL = "Fill it in, leave the row out, or say data.on_bad_row=skip."
# Who speaks in ShareGPT's messages, {from, value} -> the role.
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
ONES = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}


class BadValue(ValueError):
    """An invalid value of a row; its message continues a sentence that begins with the row."""

    def __init__(self, problem: str, hint: str = ""):
        self.problem, self.hint = problem, hint
        super().__init__(problem)


@dataclass(frozen=True)
class Labels:
    """The labels of a source's rows.

    Attributes:
        values: `[examples]` int32 class ids, `[examples, C]` float32 of 0 and 1, or `[examples]`
            float32 numbers.
        weights: weights in the loss, of the same shape; None if all are equal.
    """

    values: np.ndarray
    weights: np.ndarray | None = None

    def batch(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return a batch's `labels` and `loss_weights`, if any: `[R, S, ...]`, 0 without example.

        Args:
            index: `[rows, segments]` example numbers, -1 for none.
        """
        arrays = {"labels": self.values, "loss_weights": self.weights}
        return {name: values_of(one, index) for name, one in arrays.items() if one is not None}

    def mixed(self, index: np.ndarray, other: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
        """Return a batch's labels if each example is a mixture of two (mixup, CutMix).

        Args:
            index, other: `[rows, segments]` numbers of the two, -1 for none.
            shares: `[rows, segments]` of the other.

        Returns:
            `labels`; for class ids also `mixed_labels` and `mixed_shares`. Float labels are
            interpolated.
        """
        batch, second = self.batch(index), values_of(self.values, other)
        if self.values.dtype.kind == "f":
            wide = shares.reshape(*shares.shape, *[1] * (self.values.ndim - 1))
            mixed = (1 - wide) * batch["labels"] + wide * second
            return batch | {"labels": mixed.astype(np.float32)}
        return batch | {"mixed_labels": second, "mixed_shares": shares.astype(np.float32)}


def with_role(message: Any) -> Any:
    """Return a message of ShareGPT as {role, content}; others as they are.

    Raises:
        BadValue: it is from somebody with no role.
    """
    if not isinstance(message, Mapping) or "role" in message or not {"from", "value"} <= {*message}:
        return message
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise BadValue(
            f"has a message from '{speaker}'",
            f"Messages {{from, value}} are from {', '.join(SHAREGPT_ROLES)}; write the others as "
            "{role, content}.",
        )
    return {"role": SHAREGPT_ROLES[speaker], "content": message["value"]}


def column_of(source: Source, column: str) -> Iterator[Any]:
    """Return each row's value in a column.

    Raises:
        UserError: the source has no such column.
    """
    check_column(source, column)
    return (row[column] for _, row in source.each([column]))


def check_column(source: Source, column: str) -> None:
    """Raise a UserError that lists the source's columns if it lacks one."""
    if not source.has(column):
        raise UserError(
            f"{source.spec}: there is no column '{column}'.",
            f"Its columns: {', '.join(source.columns)}.",
        )


def label_names(source: Source, column: str, named: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes in order of class id: the config's, else the data's, else its values.

    Args:
        source: the training rows; an empty cell is no class.
        column: the column of the label, or of a list of labels.
        named: the config's names, or None.
    """
    if names := named or source.class_names(column):
        return tuple(names)
    values: set[str] = set()
    for cell in column_of(source, column):
        values |= {str(one) for one in (cell if isinstance(cell, list) else [cell])} - {"None"}
    values = {value for value in values if value.strip()}
    numeric = all(value.lstrip("-").isdigit() for value in values)
    return tuple(sorted(values, key=int if numeric else str))


def read_rows(
    source: Source, columns: Sequence[str], parse: Callable[[Mapping[str, Any]], Any]
) -> list[Any]:
    """Read each row's label or text with `parse`.

    Raises:
        UserError: a column is missing, or `parse` raised BadValue; it names the row.
    """
    for column in columns:
        check_column(source, column)
    values = []
    for number, row in source.each(columns):
        try:
            values.append(parse(row))
        except BadValue as bad:
            raise UserError(f"{source.place(number)} {bad.problem}.", bad.hint) from None
    return values


def class_id(cell: Any, column: str, names: Sequence[str]) -> int:
    """Return the class id of a cell, which holds a class's name or its id.

    A number is an id where the data names its classes, and where no name looks like a number.

    Raises:
        BadValue: the cell is empty, or no class.
    """
    value = str(cell)
    if cell is None or not value.strip():
        raise BadValue(f"has no {column}", FILL)
    if isinstance(cell, ClassId):
        number = int(cell) if 0 <= cell < len(names) else None
    else:
        number = _ids(tuple(names)).get(value)
    if number is None:
        more = ", ..." if len(names) > MOST_NAMED else ""
        raise BadValue(
            f"has the label '{value}', which is not among the train set's labels "
            f"({', '.join(names[:MOST_NAMED])}{more})",
        )
    return number


@lru_cache(maxsize=8)
def _ids(names: tuple[str, ...]) -> dict[str, int]:
    index = {name: number for number, name in enumerate(names)}
    if any(name.lstrip("-").isdigit() for name in names):
        return index
    return index | {str(number): number for number in range(len(names))}


def class_flags(cell: Any, column: str, names: Sequence[str]) -> np.ndarray:
    """Return the classes that a cell lists, as `[C]` float32 of 0 and 1.

    Raises:
        BadValue: the cell is no list, or has a label that is no class.
    """
    if not isinstance(cell, list):
        raise BadValue(
            f"has {cell!r} in {column}, which is not a list of labels",
            "Write rows as JSON lines, or use a column of 0 and 1 per label: task.label=[a, b].",
        )
    flags = np.zeros(len(names), np.float32)
    for one in cell:
        flags[class_id(one, column, names)] = 1
    return flags


def one_or_zero(cell: Any, column: str) -> bool:
    """Return whether a cell is 1.

    Raises:
        BadValue: the cell is neither 0 nor 1.
    """
    if is_missing(cell):
        raise BadValue(f"has no {column}", FILL)
    value = ONES.get(str(cell).strip().lower())
    if value is None:
        raise BadValue(f"has {cell!r} in {column}, which is neither 0 nor 1")
    return value


def number_of(cell: Any, column: str) -> float:
    """Return the number in a cell.

    Raises:
        BadValue: the cell is empty, or no finite number.
    """
    if is_missing(cell):
        raise BadValue(f"has no {column}", FILL)
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise BadValue(f"has {cell!r} in {column}, which is not a number")
    return value


def text_of(cell: Any, column: str, empty: bool = False) -> str:
    """Return the text in a cell.

    Args:
        cell: the cell.
        column: its column.
        empty: whether a blank text is valid.

    Raises:
        BadValue: the cell is blank, or no text.
    """
    if not empty and (cell is None or not str(cell).strip()):
        raise BadValue(f"has no {column}", FILL)
    if not isinstance(cell, str):
        raise BadValue(f"has {cell!r} in {column}, which is not a text")
    return cell


def text_in(column: str) -> Callable[[Mapping[str, Any]], str]:
    """Return the function that reads a row's text in a column, for `read_rows`."""
    return lambda row: text_of(row[column], column)


def named_weights(weights: Mapping[str | int, float], names: Sequence[str]) -> np.ndarray:
    """Return the weights of classes by name as `[C]` float32; 1 without a weight.

    Raises:
        UserError: a name is no class.
    """
    by_name = {str(name): weight for name, weight in weights.items()}
    for name in by_name:
        if name not in names:
            raise UserError(f"task.class_weights: '{name}' is no label.", did_you_mean(name, names))
    return np.array([by_name.get(name, 1.0) for name in names], np.float32)
