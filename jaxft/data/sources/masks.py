"""Folders of images and masks as rows: `images/` and `masks/`, paired by the names of their files.

A mask has a class id for each pixel of its image. `labels.txt` beside the two folders, if it is
there, names the classes, one a line, in order of id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxft.data.sources.images import identity_of, images_below
from jaxft.data.sources.reader import Row
from jaxft.errors import UserError
from jaxft.storage.missing import mend_of_missing

IMAGES, MASKS, NAMES = "images", "masks", "labels.txt"
COLUMNS = ("image", "mask")
PIXELS = "pixels of masks"  # what the classes are of; it is no column


@dataclass(frozen=True)
class MaskFolderReader:
    """The images of a folder with their masks, in order of their paths.

    Attributes:
        folder: the folder.
        identity: sha256 of the files' paths and of their content.
        pairs: each image's path below the folder, and its mask's, with slashes.
        names: the classes in order of id; None where the folder does not name them.
    """

    folder: Path
    identity: str
    pairs: tuple[tuple[str, str], ...]
    names: tuple[str, ...] | None
    columns: tuple[str, ...] = COLUMNS

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        rows = [dict(zip(COLUMNS, self.pairs[number], strict=True)) for number in numbers]
        return rows if columns is None else [{n: row[n] for n in columns} for row in rows]

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes under `PIXELS`, where the folder names them; no column is of ids."""
        return self.names if column == PIXELS else None


def open_mask_folder(folder: Path) -> MaskFolderReader:
    """Open the images below `images/` and the masks of the same names below `masks/`.

    Raises:
        UserError: one of the folders is not there or empty, or an image has no mask, or several.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.", mend_of_missing(folder))
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise UserError(
                f"There is no folder '{folder / name}'.",
                "A masks: folder has the folders images and masks, with files of the same names. "
                "Or list both in a CSV: csv:FILE.csv, with the columns image and mask.",
            )
    images = images_below(folder / IMAGES)
    if not images:
        raise UserError(f"The folder '{folder / IMAGES}' holds no images.")
    masks: dict[str, list[Path]] = {}
    for mask in images_below(folder / MASKS):
        masks.setdefault(_stem(mask, folder / MASKS), []).append(mask)
    pairs = [(image, _mask_of(image, folder, masks)) for image in images]
    paths = tuple(
        (image.relative_to(folder).as_posix(), mask.relative_to(folder).as_posix())
        for image, mask in pairs
    )
    names = folder / NAMES
    files = [file for pair in pairs for file in pair] + ([names] if names.is_file() else [])
    identity = identity_of([file.relative_to(folder).as_posix() for file in files], files)
    return MaskFolderReader(folder, identity, paths, _names(names) if names.is_file() else None)


def _mask_of(image: Path, folder: Path, masks: dict[str, list[Path]]) -> Path:
    stem = _stem(image, folder / IMAGES)
    own = masks.get(stem, [])
    if not own:
        raise UserError(
            f"The image '{image}' has no mask: there is no '{folder / MASKS / stem}.png'.",
            "Add it, or take the image out of the folder.",
        )
    if len(own) > 1:
        raise UserError(
            f"The image '{image}' has {len(own)} masks, such as '{own[0]}' and '{own[1]}'.",
            "Leave one.",
        )
    return own[0]


def _stem(file: Path, folder: Path) -> str:
    """Return a file's path below its folder without the ending."""
    return file.relative_to(folder).with_suffix("").as_posix()


def _names(file: Path) -> tuple[str, ...]:
    """Read the names of the classes.

    Raises:
        UserError: the file is no text, or a name comes twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 ({error.reason}).") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) != len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        what = "names no class" if twice is None else f"names the class '{twice}' twice"
        raise UserError(f"{file} {what}.", "Write one class a line, in order of id.")
    return names
