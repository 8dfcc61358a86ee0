"""The table of docs/models.md, from the code: what is loaded, trained, exported and generates.

`python -m docs.models_table FILE` writes it into the file, between its two markers; with
`--check` it only says whether the file is up to date. `make docs` and `make lint` do so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from jaxft.analysis.model_catalog import entries
from jaxft.errors import UserError
from jaxft.storage.files import write_atomic

START, END = "<!-- the table: make docs writes it -->\n", "<!-- the end of the table -->\n"
COLUMNS = ("model_type", "architecture", "task", "load", "train", "export", "generate")


def table() -> str:
    """One line for each architecture of each model type, in Markdown.

    What is in a family's table is loaded and exported: that is what the family's tests hold it to.
    """
    lines = [COLUMNS, ("---",) * len(COLUMNS), *_rows()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows() -> Iterator[tuple[str, ...]]:
    for entry in entries():
        trains = ", ".join(f"`{kind}`" for kind in entry.trains) or "-"
        writes = "`jaxft predict`" if entry.generates else "-"
        named = (f"`{entry.model_type}`", f"`{entry.architecture}`", entry.head or "-")
        yield (*named, "yes", trains, "yes", writes)


def with_table(page: str) -> str:
    """A page with the table as it is now.

    Raises:
        UserError: the page has no place for it.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"The page lacks the lines '{START.strip()}' and '{END.strip()}'.")
    return f"{before}{START}{table()}{END}{after}"


def main(words: list[str]) -> int:
    """Write the table into a page, or say whether it is up to date."""
    check, path = "--check" in words, Path(next(word for word in words if word != "--check"))
    page = path.read_text(encoding="utf-8")
    new = with_table(page)
    if check:
        return 0 if new == page else 1
    write_atomic(path, new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
