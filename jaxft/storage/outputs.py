"""Output files at paths that a person chose: they replace earlier output of jaxft only."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Iterable

from etils import epath

from jaxft.errors import UserError
from jaxft.storage.files import check_regular, is_bucket, resolved, write_atomic

# These bytes near the beginning identify a file that jaxft wrote.
HTML_MARK = b'<meta name="generator" content="jaxft'
PNG_MARK = b"tEXtSoftware\0jaxft"
_MARK_WITHIN = 4096  # bytes
_PNG_HEAD = 33  # bytes: the signature and the chunk IHDR, which has to be the first


def has_mark(path: epath.PathLike, mark: bytes) -> bool:
    """Return whether a file holds `mark` near its beginning, so that jaxft wrote it."""
    with epath.Path(path).open("rb") as file:
        return mark in file.read(_MARK_WITHIN)


def check_output(path: epath.PathLike, mark: bytes, option: str) -> None:
    """Raise a UserError if an output would replace a file that jaxft did not write.

    Args:
        path: the file that is to be written.
        mark: bytes near the beginning of every earlier output of this kind.
        option: the command line option that named the file, such as `--out`.
    """
    if not is_bucket(path):
        check_regular(pathlib.Path(path))
    if epath.Path(path).exists() and not has_mark(path, mark):
        raise UserError(
            f"{option}: {path} exists and was not written by jaxft.",
            f"Choose another name for {option}, or delete the file.",
        )


def write_output(path: epath.PathLike, content: bytes | str, mark: bytes, option: str) -> None:
    """Write a whole file, replacing only an earlier output of jaxft.

    Args:
        path, mark, option: see `check_output`; the file's folder is created.
        content: bytes or text with `mark` near its beginning.

    Raises:
        UserError: see `check_output` and `write_atomic`.
    """
    check_output(path, mark, option)
    write_atomic(path, content)


def check_new(path: epath.PathLike) -> None:
    """Raise a UserError if a file that is to be written exists, even as a dangling link."""
    if epath.Path(path).exists() or (not is_bucket(path) and pathlib.Path(path).is_symlink()):
        raise UserError(f"{path} exists already.", "Choose another name, or delete it.")


def write_new(path: epath.PathLike, content: bytes | str) -> None:
    """Write a whole file that must not exist yet.

    Raises:
        UserError: the path exists, or it cannot be written.
    """
    check_new(path)
    write_atomic(path, content)


def marked_png(content: bytes) -> bytes:
    """Return a PNG with an added text chunk that names jaxft as its writer."""
    length = (len(PNG_MARK) - 4).to_bytes(4, "big")  # without the chunk's type
    chunk = length + PNG_MARK + zlib.crc32(PNG_MARK).to_bytes(4, "big")
    return content[:_PNG_HEAD] + chunk + content[_PNG_HEAD:]


def check_apart(folder: epath.PathLike, inputs: Iterable[str], option: str) -> None:
    """Raise a UserError if outputs would be written among their own inputs.

    Args:
        folder: the output folder; it need not exist yet.
        inputs: files, and folders that are read with everything below them.
        option: the command line option that named the folder.
    """
    if is_bucket(folder):
        return
    target = resolved(folder)
    if target.exists() and not target.is_dir():
        raise UserError(f"{option}: {folder} is a file.", "Name a folder.")
    for one in inputs:
        path = pathlib.Path(one).expanduser()
        try:
            inside = path.is_dir() and target.is_relative_to(path.resolve())
            beside = target in (path.parent.resolve(), path.resolve().parent)
        except OSError:  # not a valid path; reading it reports that
            continue
        if inside or (beside and path.is_file()):
            raise UserError(
                f"{option}: {folder} holds the input '{one}'.", "Name a different folder."
            )


def distinct_name(stem: str, ending: str, taken: set[str]) -> str:
    """Return an unused file name: `x.png`, else `x-2.png` and so on.

    Args:
        stem, ending: parts of the preferred name.
        taken: the names in use, in lower case, since not every file system is case-sensitive; the
            new name is added.
    """
    name, number = f"{stem}{ending}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{ending}"
    taken.add(name.lower())
    return name
