"""Inputs of a prediction: arguments, the lines of a file, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from jaxft.bounds import MOST_LINE_BYTES
from jaxft.cli.parts.terminal import echo
from jaxft.cli.parts.together import from_first_inputs
from jaxft.errors import UserError
from jaxft.numbers import size

TEXT_FILES = (".csv", ".json", ".jsonl", ".md", ".tsv", ".txt")


def read_inputs(
    texts: list[str] | None, file: Path | None, whole: bool = False
) -> Iterable[str] | None:
    """Return the inputs, read lazily; None if the person at the terminal is to type them.

    Several processes have what the first one reads.

    Args:
        texts: the arguments.
        file: a file with one input per line.
        whole: the file is one input.

    Raises:
        UserError: both arguments and a file are given; or `whole` without a file; or several
            processes have no input but what a person types.
    """
    if texts and file:
        raise UserError("Inputs are arguments or the lines of --file, not both.", "Use one.")
    if whole and file is None:
        raise UserError("--whole-file needs --file, the file to read.", "Add --file FILE.")
    for text in texts or ():
        if looks_like_a_file(text):
            echo(f"note: '{text}' is read as a text; --file {text} reads the file.", err=True)
    if file is None:
        return from_first_inputs(texts or piped_lines())
    return from_first_inputs(_content_of(file) if whole else _lines_of(file))


def looks_like_a_file(text: str) -> bool:
    """Return whether an input text is more likely the name of a file of texts."""
    return not any(map(str.isspace, text)) and text.lower().endswith(TEXT_FILES)


def piped_lines() -> Iterator[str] | None:
    """Return the lines of standard input; None if it is a terminal."""
    return None if sys.stdin.isatty() else typed_lines()


def typed_lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    return filter(str.strip, decoded(sys.stdin.buffer, "standard input"))


def _lines_of(file: Path) -> Iterator[str]:
    """Yield the lines that are not blank; blank ones are a sign of a text over several lines."""
    texts = blank = 0
    try:
        with file.open("rb") as lines:
            for line in decoded(lines, str(file)):
                texts, blank = texts + bool(line.strip()), blank + (not line.strip())
                if line.strip():
                    yield line
    except OSError as error:
        raise UserError(f"Cannot read '{file}': {error.strerror}.") from None
    if blank:
        echo(
            f"jaxft: {file} was read as {texts:,} inputs, one per line, without its {blank:,} "
            "blank lines. --whole-file reads it as one.",
            err=True,
        )


def _content_of(file: Path) -> Iterator[str]:
    """Yield the whole file as one text."""
    try:
        with file.open("rb") as content:
            raw = content.read(MOST_LINE_BYTES + 1)
    except OSError as error:
        raise UserError(f"Cannot read '{file}': {error.strerror}.") from None
    if len(raw) > MOST_LINE_BYTES:
        raise UserError(f"{file} is longer than {size(MOST_LINE_BYTES)}, the most of one text.")
    try:
        yield raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text.") from None


def decoded(lines: IO[bytes], name: str) -> Iterator[str]:
    """Yield each line as text, without its line end."""
    for number, line in enumerate(iter(partial(lines.readline, MOST_LINE_BYTES + 1), b""), 1):
        if len(line) > MOST_LINE_BYTES:
            raise UserError(f"{name}, line {number} is longer than {size(MOST_LINE_BYTES)}.")
        start = "utf-8-sig" if number == 1 else "utf-8"  # a byte order mark is no text
        try:
            yield line.decode(start).rstrip("\r\n")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number} is not UTF-8 text.") from None
