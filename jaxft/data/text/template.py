"""Templates that turn a table's row into text, such as `{age} years old`."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.errors import UserError

UNKNOWN = "unknown"  # the text of a missing cell, distinct from any value
MISSING = ("", "na", "n/a", "nan", "null", "none")  # cells of a CSV that hold nothing
FRACTION = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?|[+-]?\d+e[+-]?\d+", re.IGNORECASE)
DIGITS = 4  # of a number with a fraction: a tokenizer spells numbers digit by digit


@dataclass(frozen=True)
class Template:
    """Alternating words and columns.

    Attributes:
        text: the template as written.
        parts: `(words, column, form)`: the words before a column, and the format of its number;
            column None after the last.
    """

    text: str
    parts: tuple[tuple[str, str | None, str], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once, in the order of the text."""
        return tuple(dict.fromkeys(column for _, column, _ in self.parts if column is not None))

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the text of a row; a missing cell is `unknown`.

        Raises:
            ValueError: a cell whose column has a number format is not a number.
        """
        written = []
        for words, column, form in self.parts:
            written.append(words)
            if column is not None:
                written.append(_written(column, row[column], form))
        return "".join(written)

    def is_empty(self, row: Mapping[str, Any]) -> bool:
        """Return whether every cell that the template uses is missing."""
        return all(is_missing(row[column]) for column in self.columns)


def parse_template(text: str) -> Template:
    """Return a template from a config.

    Args:
        text: braces hold a column's name, and after a colon Python's number format
            (`{rate:.1f}`, `{amount:,.0f}`); literal braces are doubled.

    Raises:
        UserError: a brace is not closed, names no column, or has an unknown format.
    """
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(
            f"task.template: {error} in '{text}'.", "Double literal braces: {{ and }}."
        ) from None
    parts = []
    for words, column, form, conversion in parsed:
        if column is not None and (not column.strip() or conversion):
            raise UserError(
                f"task.template: '{text}' has braces without a column name.",
                "Write {column}, or {column:.1f} for a number.",
            )
        _check_form(column, form or "")
        parts.append((words, column, form or ""))
    if not any(column for _, column, _ in parts):
        raise UserError(
            f"task.template: '{text}' names no column.", "Write {column} to insert a cell."
        )
    return Template(text, tuple(parts))


def is_missing(cell: Any) -> bool:
    """Return whether a cell is empty: None, NaN, or a CSV's word for it."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING)


def _check_form(column: str | None, form: str) -> None:
    try:
        format(1.0, form)
    except ValueError:
        raise UserError(
            f"task.template: '{form}' in {{{column}:{form}}} is not a number format.",
            "Use for example .1f, ,.0f or .0%.",
        ) from None


def _written(column: str, cell: Any, form: str) -> str:
    """Return a cell as text."""
    if is_missing(cell):
        return UNKNOWN
    if form:
        try:
            return format(float(cell), form)
        except (TypeError, ValueError):
            raise ValueError(f"has {cell!r} in {column}, not a number") from None
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float) or (isinstance(cell, str) and FRACTION.fullmatch(cell.strip())):
        return _number(float(cell))
    return str(cell).strip()


def _number(value: float) -> str:
    """Format a number by its first digits, or as a whole one if it has more before the point."""
    if not math.isfinite(value):
        return str(value)
    whole = round(abs(value)) >= 10**DIGITS or value == int(value)
    return f"{value:.0f}" if whole else f"{value:.{DIGITS}g}"
