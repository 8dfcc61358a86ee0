"""Pictures with boxes as examples: cut into pieces, each with the boxes that it shows."""

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
from jaxft.tasks.parts.images import DecodedExamples, images_fingerprint, open_image
from jaxft.tasks.parts.labels import BadValue, class_id

MULTIPLE = 8  # of the boxes that a batch has room for: few shapes to compile


@dataclass(frozen=True)
class Boxes:
    """What is in a picture.

    Attributes:
        corners: `[N, 4]` left, top, right, bottom in pixels.
        labels: `[N]` class ids.
        crowd: `[N]` whether a box is round many things at once: not learned, and never wrong.
    """

    corners: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class PieceExamples(DecodedExamples):
    """Pieces of pictures, cut out when they are batched; see `contract.Examples`.

    Attributes:
        sizes: `[pictures, 2]` height and width of each.
        pieces: `[examples, 5]` each piece's picture, left, top, width and height.
        truth: the boxes of each picture; None where nothing is known of them.
        boxes: `[examples, M, 4]` as the model has them, 0 where there are fewer.
        classes: `[examples, M]`, -1 where there are fewer.
        places: `[Q, 2]` where each detection looks, across and down; None where it may anywhere.
        totals: how many pictures and boxes there are.
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
        digest.update(images_fingerprint(self.source, self.column, self.processor).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pieces)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        del row_length, epoch_random
        there, number = index[:, 0] >= 0, np.maximum(index[:, 0], 0)
        batch = row_marks(index)
        if self.truth is not None:
            batch["boxes"] = np.where(there[:, None, None], self.boxes[number], 0.0)
            batch["box_labels"] = np.where(there[:, None], self.classes[number], -1)
            if self.places is not None:
                batch["places"] = np.repeat(self.places[None], len(index), axis=0)
        if self.decoded:
            values = np.zeros((len(index), 3, *self.processor.size), np.float32)
            for row in np.flatnonzero(there):
                values[row] = self.processor(self._piece(number[row]))
            batch["pixel_values"] = values
        return batch

    def _piece(self, number: int) -> Image.Image:
        picture, left, top, width, height = (int(one) for one in self.pieces[number])
        image = opened(self.source, picture, self.column)
        if image.mode in ("P", "PA"):  # what lies over the edge is black in no palette
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        return image.crop((left, top, left + width, top + height))


def opened(source: Source, picture: int, column: str) -> Image.Image:
    """A picture; of files the last few are kept, since a picture's pieces come together."""
    value = source.rows([picture], [column])[0][column]
    if not isinstance(value, str):
        return open_image(source, picture, value)
    path = source.folder / value
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
    """A source's pictures, cut into pieces.

    Args:
        source: the rows.
        columns: which hold the image and the objects.
        names: the classes; None for pictures without boxes.
        processor: the checkpoint's; a piece is resized to what it puts out, and nothing is cropped.
        most: the most boxes that a piece may have.
        cutting: `tile` and `overlap` of `tiles.cut`, and `form`, how the boxes are told.

    Raises:
        UserError: a picture that does not decode, a box that is none, or a piece with too many.
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
    """The boxes that a piece shows, as the model has them, and their classes."""
    learned = ~truth.crowd
    boxes, kept = within(truth.corners[learned], piece)
    return relative(boxes, piece), truth.labels[learned][kept]


def _padded(
    shown: Sequence[tuple[np.ndarray, np.ndarray]], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[E, M, 4]` and classes `[E, M]` of all pieces, as long as the longest."""
    longest = max((len(labels) for _, labels in shown), default=0)
    if longest > most:
        raise UserError(
            f"A piece of a picture has {longest} boxes, and the model has {most} detection tokens.",
            "Cut smaller pieces (task.tile), or give a plain ViT more (model.detection_tokens).",
        )
    room = min(max(-(-longest // MULTIPLE) * MULTIPLE, 1), most)
    boxes = np.zeros((len(shown), room, 4), np.float32)
    classes = np.full((len(shown), room), -1, np.int32)
    for number, (corners, labels) in enumerate(shown):
        boxes[number, : len(labels)], classes[number, : len(labels)] = corners, labels
    return boxes, classes


def read_boxes(
    objects: Any, names: Sequence[str], size: tuple[int, int], form: str, place: str
) -> Boxes:
    """A row's objects: `bbox`, `label` and, where there are any, `crowd` (TFDS's `is_crowd`).

    Args:
        objects: the row's.
        names: the classes.
        size: height and width of the picture.
        form: `pascal_voc` (left, top, right, bottom), `coco` (left, top, width, height) or `tfds`
            (top, left, bottom, right as shares of the picture).
        place: what a message calls the row, where an object has no place of its own.

    Raises:
        UserError: a box outside the picture or of no area, or a label that is no class.
    """
    objects = dict(objects or {"bbox": [], "label": []})
    given = objects.get("label", objects.get("category", objects.get("categories", [])))
    boxes = np.array(list(objects["bbox"]), float).reshape(-1, 4)
    crowd = objects.get("crowd", objects.get("is_crowd", [False] * len(boxes)))
    places = objects.get("place") or [place] * len(boxes)
    height, width = size
    if form == "coco":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    elif form == "tfds":
        boxes = boxes[:, [1, 0, 3, 2]] * np.array([width, height, width, height])
    for box, where in zip(boxes, places, strict=True):
        _check_box(box, size, where)
    labels = [_class_id(one, names, where) for one, where in zip(given, places, strict=True)]
    limit = np.array([width, height, width, height])
    return Boxes(np.clip(boxes, 0, limit), np.array(labels, np.int32), np.array(crowd, bool))


def _check_box(box: np.ndarray, size: tuple[int, int], place: str) -> None:
    left, top, right, bottom = box
    height, width = size
    said = f"({', '.join(f'{number:g}' for number in box)})"
    if not np.isfinite(box).all() or right <= left or bottom <= top:
        raise UserError(
            f"{place}: the box {said} has no area.", "Its right and bottom are beyond left and top."
        )
    # A pixel over the edge is how some tools round.
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise UserError(
            f"{place}: the box {said} reaches out of its image, which is {width} x {height}.",
            "Boxes are in the image's own pixels: left, top, right, bottom.",
        )


def _class_id(label: Any, names: Sequence[str], place: str) -> int:
    try:
        return class_id(label, "label", names)
    except BadValue as bad:
        hint = bad.hint or did_you_mean(str(label), names)
        raise UserError(f"{place} {bad.said}.", hint) from None
