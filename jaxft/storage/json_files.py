"""JSON files of others: bounded in size and nesting, and refused in a sentence that names the file.

Python's own reader raises RecursionError on deep nesting, which no caller expects, and reads files
of any size.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, TypeGuard

from jaxft.bounds import MOST_JSON_BYTES, MOST_JSON_LEVELS
from jaxft.errors import UserError
from jaxft.numbers import size

BLOCK = 1 << 20  # bytes
LARGEST = 1e30
TOO_DEEP = f"nests JSON more than {MOST_JSON_LEVELS} levels deep"


def parse_json(text: str | bytes, name: str | os.PathLike) -> Any:
    """Parse JSON text from outside the project.

    Args:
        text: JSON, in UTF-8 if bytes.
        name: the file or place that it is from, for the message.

    Raises:
        UserError: it is not JSON, not UTF-8, nested more than `MOST_JSON_LEVELS` deep, or has
            half of a surrogate pair, which no text file can hold.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        content = json.loads(text)
    except RecursionError:
        raise UserError(f"{os.fspath(name)} {TOO_DEEP}.") from None
    except ValueError as error:  # not JSON, not UTF-8, or a number of thousands of digits
        raise UserError(f"{os.fspath(name)} is not JSON ({error}).") from None
    if fault := json_fault(content, text):
        raise UserError(f"{os.fspath(name)} {fault}.")
    return content


def json_fault(content: Any, text: str) -> str:
    """Return what is wrong with parsed JSON, as the rest of a sentence; empty if nothing is.

    Only content whose text can have a fault is looked at: rows are many, and files large.
    """
    containers = text.count("[") + text.count("{")
    if containers > MOST_JSON_LEVELS and _is_nested_deeper(content, MOST_JSON_LEVELS):
        return TOO_DEEP
    if r"\u" not in text:
        return ""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair (\\u{ord(error.object[error.start]):x})"
    return ""


def read_json(path: pathlib.Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Read a JSON file from outside the project.

    Args:
        path: a regular file, or a link to one; in a bucket too.
        most_bytes: the largest file that is read.

    Raises:
        UserError: it is no regular file, larger than `most_bytes`, or refused by `parse_json`.
        OSError: it is not there, or the system refuses to open it.
    """
    return parse_json(read_regular(path, most_bytes), path)


def read_regular(path: pathlib.Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """Read a regular file of bounded size, or a link to one; in a bucket too.

    Raises:
        UserError: it is no regular file, or larger than `most_bytes`.
        OSError: it is not there, or the system refuses to open it.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file.")
    content = bytearray()
    with path.open("rb") as file:
        while block := file.read(BLOCK):  # at once, it would reserve memory for the largest file
            content += block
            if len(content) > most_bytes:
                raise UserError(f"{path} is larger than {size(most_bytes)}, the most that is read.")
    return bytes(content)


def read_json_object(path: pathlib.Path, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        UserError: as `read_json`, or the content is not an object.
        OSError: as `read_json`.
    """
    content = read_json(path, most_bytes)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {json_type(content)} and not a JSON object.")
    return content


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a parsed value is a number that float32 holds, and neither true nor false."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= LARGEST  # of NaN and infinity this is false


def json_type(value: Any) -> str:
    """Name the JSON type of a parsed value with its article, as a message has it."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _is_nested_deeper(content: Any, most: int) -> bool:
    """Return whether containers are nested more than `most` deep, without recursion."""
    level = [content]
    for _ in range(most):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
