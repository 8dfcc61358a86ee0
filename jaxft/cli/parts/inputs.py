"""Inputs of a prediction: arguments, the lines of a file, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from jaxft.bounds import MOST_LINE_BYTES
from jaxft.cli.parts.terminal import echo
from jaxft.errors import UserError
from jaxft.numbers import size

TEXT_FILES = (".csv", ".json", ".jsonl", ".md", ".tsv", ".txt")


def read_inputs(texts: list[str] | None, file: Path | None) -> Iterable[str] | None:
    """Return the inputs, read lazily; None if the person at the terminal is to type them.

    Raises:
        UserError: both arguments and a file are given.
    """
    if texts and file:
        raise UserError("Inputs are arguments or the lines of --file, not both.", "Use one.")
    for text in texts or ():
        if looks_like_a_file(text):
            echo(f"note: '{text}' is read as a text; --file {text} reads the file.", err=True)
    return texts or (_lines_of(file) if file else piped_lines())


def looks_like_a_file(text: str) -> bool:
    """Return whether an input text is more likely the name of a file of texts."""
    return not any(map(str.isspace, text)) and text.lower().endswith(TEXT_FILES)


def piped_lines() -> Iterator[str] | None:
    """Return the lines of standard input; None if it is a terminal."""
    return None if sys.stdin.isatty() else typed_lines()


def typed_lines() -> Iterator[str]:
    """Yield the lines of standard input."""
    return decoded(sys.stdin.buffer, "standard input")


def _lines_of(file: Path) -> Iterator[str]:
    try:
        with file.open("rb") as lines:
            yield from decoded(lines, str(file))
    except OSError as error:
        raise UserError(f"Cannot read '{file}': {error.strerror}.") from None


def decoded(lines: IO[bytes], name: str) -> Iterator[str]:
    """Yield each line as text, without its line end."""
    for number, line in enumerate(iter(partial(lines.readline, MOST_LINE_BYTES + 1), b""), 1):
        if len(line) > MOST_LINE_BYTES:
            raise UserError(f"{name}, line {number} is longer than {size(MOST_LINE_BYTES)}.")
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number} is not UTF-8 text.") from None
