"""Template that writes a row of a table as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxft.analysis.first_config.columns import Column
from jaxft.errors import UserError

MOST_COLUMNS = 24  # of a template: more would not fit a text model's positions
MOST_DIGITS = 4  # after the point


def row_template(columns: Sequence[Column]) -> tuple[str, tuple[str, ...]]:
    """Return a template of the columns that describe a row, and their names.

    Args:
        columns: all but those of the labels; identifiers and empty ones are left out, and numbers
            are rounded to two digits of their spread.

    Raises:
        UserError: none of them describes a row.
    """
    used = [one for one in columns if one.kind in ("number", "category", "text")]
    if not used:
        raise UserError(
            "No column besides the labels describes a row.", "Name the texts with --text."
        )
    used = used[:MOST_COLUMNS]
    parts = [f"{_words(one.name)} {{{_column(one)}}}" for one in used]
    return ", ".join(parts), tuple(one.name for one in used)


def _words(name: str) -> str:
    """Return a column's name as words; braces are doubled."""
    return name.replace("_", " ").replace("{", "{{").replace("}", "}}")


def _column(one: Column) -> str:
    """Return the column with the format of its numbers, as a template has it in braces.

    Raises:
        UserError: its name cannot be written in a template.
    """
    if set("{}:!.[]") & set(one.name):
        raise UserError(
            f"The column '{one.name}' cannot be named in a template.",
            "Rename it without any of { } : ! . [ ].",
        )
    if one.kind != "number":
        return one.name
    if one.whole or one.spread == 0:
        return f"{one.name}:.0f"
    digits = 1 - math.floor(math.log10(one.spread))
    return f"{one.name}:.{min(MOST_DIGITS, max(0, digits))}f"
