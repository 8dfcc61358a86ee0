"""Pictures with boxes, a row per picture: from a CSV with a box per row, or from COCO's JSON.

A row has `image`, a path relative to the file's folder, and `objects`: `bbox` (left, top, right and
bottom of each, in pixels), `label`, `crowd` and `place`, the name of each in messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.bounds import MOST_COCO_BYTES
from jaxft.data.sources.files import check_is_file, open_csv
from jaxft.data.sources.reader import CornerObjects, Row
from jaxft.errors import UserError
from jaxft.storage.files import sha256
from jaxft.storage.json_files import read_json_object

COLUMNS = ("image", "objects")
FIELDS = ("bbox", "label", "crowd", "place")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class BoxesReader:
    """The pictures of one file of boxes.

    Attributes:
        path: the file.
        identity: sha256 of its bytes.
        pictures: a row each, in the order of the file.
        names: the classes, where the file names them.
        images: the folder of the images, where it is not the file's.
    """

    path: Path
    identity: str
    pictures: tuple[Row, ...]
    names: tuple[str, ...] | None = None
    columns: tuple[str, ...] = COLUMNS
    images: Path | None = None

    @property
    def folder(self) -> Path:
        """Return the folder that relative paths in the rows start from."""
        return self.images or self.path.parent

    def __len__(self) -> int:
        return len(self.pictures)

    def rows(self, numbers: Iterable[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of these numbers, in this order, with `columns` (None: all) of each."""
        wanted = self.columns if columns is None else columns
        return [{name: self.pictures[int(n)][name] for name in wanted} for n in numbers]

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Return the classes of the objects, where the file names them."""
        return self.names if column == "objects" else None


def open_boxes(path: Path) -> BoxesReader:
    """Open a CSV with a box per row: image_path, xmin, ymin, xmax, ymax (pixels) and label.

    A row whose corners are all empty, or all 0, marks a picture without objects.

    Raises:
        UserError: no such file, no such columns, or a row whose corners are no numbers.
    """
    table = open_csv(path)
    for column in ("image_path", *CORNERS, "label"):
        if column not in table.columns:
            raise UserError(
                f"{path}: there is no column '{column}'.",
                f"A file of boxes has image_path, {', '.join(CORNERS)} and label.",
            )
    pictures: dict[str, Row] = {}
    for number, row in enumerate(table.rows(range(len(table))), 1):
        objects = _picture(pictures, row["image_path"])
        corners = [row[name].strip() for name in CORNERS]
        if set(corners) <= {"", "0", "0.0"}:
            continue
        try:
            box = [float(corner) for corner in corners]
        except ValueError:
            raise UserError(
                f"{path}: row {number} has a corner that is not a number ({', '.join(corners)})."
            ) from None
        _add(objects, box, row["label"], False, f"{path}: row {number}")
    return BoxesReader(path, table.identity, tuple(pictures.values()))


def open_coco(path: Path) -> BoxesReader:
    """Open COCO's JSON: `images`, `annotations`, `categories`; boxes are left, top, width, height.

    Categories of one name are one class. Images lie beside the file; those of
    `annotations/instances_SPLIT.json` also in `SPLIT`, `images/SPLIT` or `images`.

    Raises:
        UserError: no such file, other content, or an annotation of a picture or a category that
            is not there.
    """
    check_is_file(path)
    try:
        content = read_json_object(path, most_bytes=MOST_COCO_BYTES)
        files = {one["id"]: one["file_name"] for one in content["images"]}
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        pictures: dict[str, Row] = {}
        for name in files.values():
            _picture(pictures, name)
        for one in content["annotations"]:
            _add_annotation(path, pictures, files, names, one)
        ordered = tuple(dict.fromkeys(names[one] for one in sorted(names)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a COCO file ({type(error).__name__}: {error}).",
            "A COCO file has images (id, file_name), annotations (image_id, category_id, bbox) and "
            "categories (id, name).",
        ) from None
    folder = _image_folder(path, next(iter(pictures), ""))
    return BoxesReader(path, sha256(path), tuple(pictures.values()), ordered, images=folder)


def _image_folder(path: Path, first: str) -> Path | None:
    """Return the folder of the images in COCO's own layout; None for that of the file."""
    if path.parent.name != "annotations" or not first or (path.parent / first).exists():
        return None
    split, root = path.stem.removeprefix("instances_"), path.parent.parent
    folders = (root / split, root / "images" / split, root / "images")
    return next((folder for folder in folders if (folder / first).is_file()), None)


def _add_annotation(
    path: Path,
    pictures: dict[str, Row],
    files: Mapping[Any, str],
    names: Mapping[Any, str],
    one: Mapping[str, Any],
) -> None:
    origin = f"{path}: annotation {one.get('id', '?')}"
    for kind, known in (("image", files), ("category", names)):
        if one[f"{kind}_id"] not in known:
            raise UserError(
                f"{origin} names the {kind} {one[f'{kind}_id']}, which is not in the file."
            )
    left, top, width, height = map(float, one["bbox"])
    box = [left, top, left + width, top + height]
    objects = _picture(pictures, files[one["image_id"]])
    _add(objects, box, names[one["category_id"]], bool(one.get("iscrowd")), origin)


def _picture(pictures: dict[str, Row], name: str) -> dict[str, list]:
    """Return the objects of a picture, which is added if it is new."""
    empty = {"image": name, "objects": CornerObjects({field: [] for field in FIELDS})}
    return pictures.setdefault(name, empty)["objects"]


def _add(objects: dict[str, list], *values: Any) -> None:
    for field, value in zip(FIELDS, values, strict=True):
        objects[field].append(value)
