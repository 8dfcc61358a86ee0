"""Class labels as data sources hold them: names from the data, and each row's class id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.data.sources import Source
from jaxft.errors import UserError

MOST_NAMED = 10  # labels in a sentence


def column_of(source: Source, column: str) -> Iterator[Any]:
    """Each row's value in a column.

    Raises:
        UserError: the source has no such column.
    """
    if column not in source.columns:
        raise UserError(
            f"{source.spec}: there is no column '{column}'.",
            f"Its columns: {', '.join(source.columns)}.",
        )
    return (row[column] for row in source.rows(range(len(source)), [column]))


def label_names(source: Source, column: str, named: Sequence[str] | None) -> tuple[str, ...]:
    """The classes in order of class id: those named, else the data's own, else its values.

    Args:
        source: the training rows.
        column: holds the label.
        named: the config's names, or None.
    """
    given = named or source.class_names(column)
    if given:
        return tuple(given)
    values = {str(value) for value in column_of(source, column)}
    numeric = all(value.lstrip("-").isdigit() for value in values)
    return tuple(sorted(values, key=int if numeric else str))


def label_ids(source: Source, column: str, names: Sequence[str]) -> np.ndarray:
    """Each row's class id: `[examples]` int32.

    Args:
        source: the rows; a label is a class's name, or its id.
        column: holds the label.
        names: the classes.

    Raises:
        UserError: a row without a label or with one that is not among `names`; or a split with
            one class only.
    """
    index = {name: number for number, name in enumerate(names)}
    index |= {str(number): number for number in range(len(names)) if str(number) not in index}
    values = [str(value) for value in column_of(source, column)]
    for row, value in enumerate(values):
        if not value.strip():
            raise UserError(
                f"{source.spec}: row {row} has no {column}.",
                "Fill it in, or leave the row out.",
            )
        if value not in index:
            more = ", ..." if len(names) > MOST_NAMED else ""
            raise UserError(
                f"{source.spec}: row {row} has the label '{value}', which is not among the "
                f"train set's labels ({', '.join(names[:MOST_NAMED])}{more}).",
            )
    counts = Counter(values)
    if len(counts) < 2:
        only = next(iter(counts), None)
        said = f"has one class only ('{only}')" if values else "has no rows"
        raise UserError(
            f"{source.spec}: the split {said}.",
            "Check data.where and the slice; slices are cut from a seeded shuffle.",
        )
    return np.array([index[value] for value in values], np.int32)
