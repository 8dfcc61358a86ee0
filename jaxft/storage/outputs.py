"""Files that are written where a person said: over nothing but an earlier one of jaxft's."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterable

from etils import epath

from jaxft.errors import UserError
from jaxft.storage.files import check_regular, is_bucket, resolved, write_atomic

# What jaxft writes where a person says is known again by these bytes near its beginning.
HTML_MARK = b'<meta name="generator" content="jaxft'
PNG_MARK = b"tEXtSoftware\0jaxft"
_MARK_WITHIN = 4096  # bytes
_PNG_HEAD = 33  # bytes: the signature and the chunk IHDR, which has to be the first


def has_mark(path: epath.PathLike, mark: bytes) -> bool:
    """Whether a file holds `mark` near its beginning, and so is one that jaxft wrote."""
    with epath.Path(path).open("rb") as file:
        return mark in file.read(_MARK_WITHIN)


def check_output(path: epath.PathLike, mark: bytes, option: str) -> None:
    """Raises a UserError where an output that a person named would replace what is not ours.

    Args:
        path: the file that is to be written.
        mark: what an earlier output of this kind holds near its beginning.
        option: how the person named it, such as `--out`.
    """
    if not is_bucket(path):
        check_regular(pathlib.Path(path))
    if epath.Path(path).exists() and not has_mark(path, mark):
        raise UserError(
            f"{option}: {path} is there already and was not written by jaxft.",
            f"Choose another name for {option}, or delete the file.",
        )


def write_output(path: epath.PathLike, content: bytes | str, mark: bytes, option: str) -> None:
    """Writes a file where a person said, whole, and over nothing but an earlier one of ours.

    Args:
        path, mark, option: see `check_output`; the file's folder is made.
        content: bytes or text with `mark` near its beginning.

    Raises:
        UserError: see `check_output` and `write_atomic`.
    """
    check_output(path, mark, option)
    write_atomic(path, content)


def marked_png(content: bytes) -> bytes:
    """A PNG with a text chunk that says that jaxft wrote it."""
    length = (len(PNG_MARK) - 4).to_bytes(4, "big")  # without the chunk's type
    chunk = length + PNG_MARK + zlib.crc32(PNG_MARK).to_bytes(4, "big")
    return content[:_PNG_HEAD] + chunk + content[_PNG_HEAD:]


def check_apart(folder: epath.PathLike, inputs: Iterable[str], option: str) -> None:
    """Raises a UserError where outputs would lie among the files that they are made of.

    Args:
        folder: where the outputs go; it need not be there yet.
        inputs: files, and folders that are read with all that is below them.
        option: how the person named the folder.
    """
    if is_bucket(folder):
        return
    target = resolved(folder)
    if target.exists() and not target.is_dir():
        raise UserError(f"{option}: {folder} is a file.", "Name a folder, new or empty.")
    for one in inputs:
        path = pathlib.Path(one).expanduser()
        try:
            inside = path.is_dir() and target.is_relative_to(path.resolve())
            beside = target in (path.parent.resolve(), path.resolve().parent)
        except OSError:  # no path at all, which who reads it will say
            continue
        if inside or (beside and path.is_file()):
            raise UserError(
                f"{option}: {folder} is where '{one}' is read from.", "Name a folder apart from it."
            )


def distinct_name(stem: str, ending: str, taken: set[str]) -> str:
    """A file's name that no other of the same outputs has: `x.png`, else `x-2.png` and so on.

    Args:
        stem, ending: what the name would be.
        taken: the names there are, in lower case, since not every disk tells case; the new one is
            added.
    """
    name, number = f"{stem}{ending}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{ending}"
    taken.add(name.lower())
    return name
