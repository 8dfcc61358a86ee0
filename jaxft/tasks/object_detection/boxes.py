"""Images with boxes as examples: cut into pieces, each with the boxes that it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.data.image.images import ImageProcessor, decode
from jaxft.data.image.tiles import cut, relative, within
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import DecodedExamples, open_image
from jaxft.tasks.parts.labels import BadValue, class_id

MULTIPLE = 8  # boxes are padded to a multiple of it: few shapes to compile


@dataclass(frozen=True)
class Boxes:
    """The true boxes of an image.

    Attributes:
        corners: `[N, 4]` left, top, right, bottom in pixels.
        labels: `[N]` class ids.
        crowd: `[N]` whether a box surrounds many objects: not learned, ignored in the scores.
    """

    corners: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class PieceExamples(DecodedExamples):
    """Pieces of images, cropped when they are batched; see `jaxft.tasks.parts.examples.Examples`.

    Attributes:
        sizes: `[images, 2]` height and width of each.
        pieces: `[examples, 5]` each piece's image, left, top, width and height.
        truth: the boxes of each image; None for inputs.
        boxes: `[examples, M, 4]` in the model's coordinates, padded with 0.
        classes: `[examples, M]`, padded with -1.
        places: `[Q, 2]` the position of each detection, across and down; None without positions.
        totals: the numbers of images and boxes.
    """

    sizes: np.ndarray
    pieces: np.ndarray
    truth: Sequence[Boxes] | None
    boxes: np.ndarray
    classes: np.ndarray
    places: np.ndarray | None = None
    totals: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.totals

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.pieces.astype(np.int64).tobytes())
        digest.update(self.images_fingerprint.encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pieces)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        present, number = index[:, 0] >= 0, np.maximum(index[:, 0], 0)
        batch = row_marks(index)
        if self.truth is not None:
            batch["boxes"] = np.where(present[:, None, None], self.boxes[number], 0.0)
            batch["box_labels"] = np.where(present[:, None], self.classes[number], -1)
            if self.places is not None:
                batch["places"] = np.repeat(self.places[None], len(index), axis=0)
        if self.decoded:
            values = np.zeros((len(index), 3, *self.processor.size), np.float32)
            for row in np.flatnonzero(present):
                values[row] = self.processor(self._piece(number[row]))
            batch["pixel_values"] = values
        return batch

    def _piece(self, number: int) -> Image.Image:
        picture, left, top, width, height = (int(one) for one in self.pieces[number])
        image = opened(self.source, picture, self.column)
        if image.mode in ("P", "PA"):  # a palette need not have black for the area beyond the edge
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        return image.crop((left, top, left + width, top + height))


def opened(source: Source, picture: int, column: str) -> Image.Image:
    """Open an image; the last few files stay open, since an image's pieces come together."""
    value = source.rows([picture], [column])[0][column]
    if not isinstance(value, str):
        return open_image(source, picture, value)
    path = source.path_of(picture, value)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _opened(path, changed)


@lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> Image.Image:
    del changed
    return decode(path)


def read_examples(
    source: Source,
    columns: tuple[str, str],
    names: Sequence[str] | None,
    processor: ImageProcessor,
    most: int,
    **cutting: Any,
) -> PieceExamples:
    """Read a source's images, cut into pieces.

    Args:
        source: the rows.
        columns: the columns of the image and the objects.
        names: the classes; None for images without boxes.
        processor: the checkpoint's image processor; a piece is resized to its output size, and
            not cropped.
        most: the most boxes of a piece.
        cutting: `tile` and `overlap` of `tiles.cut`, and `form`, the format of boxes.

    Raises:
        UserError: an image does not decode, a box is invalid, or a piece has too many boxes.
    """
    processor = replace(processor, resize=processor.size, crop=None)
    form = cutting.pop("form")
    sizes, pieces, truth, shown = [], [], [], []
    for picture in range(len(source)):
        image = opened(source, picture, columns[0])
        size = (image.height, image.width)
        own = cut(size, processor.size, **cutting)
        sizes.append(size)
        pieces.append(np.insert(own, 0, picture, axis=1))
        if names is None:
            continue
        row = source.rows([picture], [columns[1]])[0][columns[1]]
        truth.append(read_boxes(row, names, size, form, source.place(picture)))
        shown += [_shown(truth[-1], piece) for piece in own]
    boxes, classes = _padded(shown, most)
    counts = {"pictures": len(source)} | ({"boxes": int((classes >= 0).sum())} if shown else {})
    return PieceExamples(
        source,
        columns[0],
        processor,
        np.array(sizes),
        np.concatenate(pieces),
        None if names is None else truth,
        boxes,
        classes,
        totals=counts,
    )


def _shown(truth: Boxes, piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes that a piece shows, in the model's coordinates, and their classes."""
    learned = ~truth.crowd
    boxes, visible = within(truth.corners[learned], piece)
    return relative(boxes, piece), truth.labels[learned][visible]


def _padded(
    shown: Sequence[tuple[np.ndarray, np.ndarray]], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad boxes `[E, M, 4]` and classes `[E, M]` of all pieces to the longest."""
    longest = max((len(labels) for _, labels in shown), default=0)
    if longest > most:
        raise UserError(
            f"A piece of an image has {longest} boxes, and the model has {most} detection tokens.",
            "Cut smaller pieces (task.tile), or give a plain ViT more (model.detection_tokens).",
        )
    room = min(max(-(-longest // MULTIPLE) * MULTIPLE, 1), most)
    boxes = np.zeros((len(shown), room, 4), np.float32)
    classes = np.full((len(shown), room), -1, np.int32)
    for number, (corners, labels) in enumerate(shown):
        boxes[number, : len(labels)], classes[number, : len(labels)] = corners, labels
    return boxes, classes


def read_boxes(
    objects: Any, names: Sequence[str], size: tuple[int, int], form: str, row: str
) -> Boxes:
    """Read a row's objects: `bbox`, `label` and perhaps `crowd` (TFDS's `is_crowd`).

    Args:
        objects: the row's cell.
        names: the classes.
        size: height and width of the image.
        form: `pascal_voc` (left, top, right, bottom), `coco` (left, top, width, height) or `tfds`
            (top, left, bottom, right as shares of the image).
        row: the row's name in messages, for objects without a location of their own.

    Raises:
        UserError: a box is outside the image or has no area, or a label is no class.
    """
    objects = dict(objects or {"bbox": [], "label": []})
    classes = objects.get("label", objects.get("category", objects.get("categories", [])))
    boxes = np.array(list(objects["bbox"]), float).reshape(-1, 4)
    crowd = objects.get("crowd", objects.get("is_crowd", [False] * len(boxes)))
    places = objects.get("place") or [row] * len(boxes)
    height, width = size
    if form == "coco":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    elif form == "tfds":
        boxes = boxes[:, [1, 0, 3, 2]] * np.array([width, height, width, height])
    for box, where in zip(boxes, places, strict=True):
        _check_box(box, size, where)
    labels = [_class_id(one, names, where) for one, where in zip(classes, places, strict=True)]
    limit = np.array([width, height, width, height])
    return Boxes(np.clip(boxes, 0, limit), np.array(labels, np.int32), np.array(crowd, bool))


def _check_box(box: np.ndarray, size: tuple[int, int], where: str) -> None:
    """Raise a UserError if a box has no area, or is partly outside its image."""
    left, top, right, bottom = box
    height, width = size
    values = f"({', '.join(f'{number:g}' for number in box)})"
    if not np.isfinite(box).all() or right <= left or bottom <= top:
        raise UserError(
            f"{where}: the box {values} has no area.",
            "Its right has to exceed its left, and its bottom its top.",
        )
    # Some tools round a pixel beyond the edge.
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise UserError(
            f"{where}: the box {values} is partly outside its image of {width} x {height} pixels.",
            "Give boxes in the image's pixels: left, top, right, bottom (see task.box_format).",
        )


def _class_id(label: Any, names: Sequence[str], where: str) -> int:
    try:
        return class_id(label, "label", names)
    except BadValue as bad:
        hint = bad.hint or did_you_mean(str(label), names)
        raise UserError(f"{where} {bad.problem}.", hint) from None
