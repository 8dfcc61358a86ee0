"""Folders of images as rows: each subfolder is a class, and its name is the label."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxft.data.sources.reader import Row
from jaxft.errors import UserError
from jaxft.storage.files import sha256
from jaxft.storage.missing import mend_of_missing

COLUMNS = ("image", "label")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
HASHED_BYTES = 2**30  # folders up to this size are known by content, larger ones by file sizes


@dataclass(frozen=True)
class ImageFolderReader:
    """The images of a folder's sub-folders, in order of their paths.

    Attributes:
        folder: the folder.
        identity: sha256 of the images' paths and of their content.
        paths: each image's path below the folder, with slashes.
    """

    folder: Path
    identity: str
    paths: tuple[str, ...]
    columns: tuple[str, ...] = COLUMNS

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        rows = []
        for number in numbers:
            path = self.paths[number]
            row = {"image": path, "label": path.partition("/")[0]}
            rows.append(row if columns is None else {name: row[name] for name in columns})
        return rows

    def class_names(self, column: str) -> None:
        """Return None: the training rows define the classes, as in a text file."""
        return


def open_image_folder(folder: Path) -> ImageFolderReader:
    """Open the images below a folder, at any depth; the first subfolder is the label.

    Raises:
        UserError: no such folder, no sub-folders, or a sub-folder without images.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.", mend_of_missing(folder))
    classes = sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
    if not classes:
        raise UserError(
            f"'{folder}' has no subfolders; each class needs one, whose name is the label.",
            "Or list images and labels in a CSV: csv:FILE.csv.",
        )
    files = []
    for one in classes:
        inside = images_below(one)
        if not inside:
            raise UserError(
                f"The class folder '{one}' holds no images.",
                f"Images end in {', '.join(ENDINGS)}.",
            )
        files += inside
    paths = tuple(file.relative_to(folder).as_posix() for file in files)
    return ImageFolderReader(folder, identity_of(paths, files), paths)


def images_below(folder: Path) -> list[Path]:
    """Return every image file below a folder, in order of their paths."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(ENDINGS)
    )


def identity_of(paths: Sequence[str], files: Sequence[Path]) -> str:
    """Return the sha256 of paths and sizes, and of the content unless it is large."""
    sizes = [file.stat().st_size for file in files]
    digest = hashlib.sha256()
    for path, file, size in zip(paths, files, sizes, strict=True):
        digest.update(f"{path}\0{size}\0".encode())
        if sum(sizes) <= HASHED_BYTES:
            digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()
