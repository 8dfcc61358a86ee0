"""Images with boxes as examples: cut into pieces, each with the boxes that it shows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.data.image.augment_boxes import BoxAugmentation, augment_boxes, shown_in
from jaxft.data.image.images import ImageProcessor, decode
from jaxft.data.image.tiles import areas, cut, cut_image, relative, within
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.tasks.object_detection.truth import Boxes, read_boxes
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import DecodedExamples, open_image

MULTIPLE = 8  # boxes are padded to a multiple of it: few shapes to compile


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
        augment: the random augmentation; None without.
    """

    sizes: np.ndarray
    pieces: np.ndarray
    truth: Sequence[Boxes] | None
    boxes: np.ndarray
    classes: np.ndarray
    places: np.ndarray | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    augment: BoxAugmentation | None = None

    @property
    def random(self) -> bool:
        return self.augment is not None

    def scored(self) -> PieceExamples:
        """Return the pieces as they are, without augmentation."""
        return replace(self, augment=None)

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
        del row_length
        present, number = index[:, 0] >= 0, np.maximum(index[:, 0], 0)
        batch = row_marks(index)
        if self.augment is not None and self.truth is not None:
            return batch | self._augmented(self.augment, index[:, 0], epoch_random)
        if self.truth is not None:
            batch["boxes"] = np.where(present[:, None, None], self.boxes[number], 0.0)
            batch["box_labels"] = np.where(present[:, None], self.classes[number], -1)
            batch |= self._placed(len(index))
        if self.decoded:
            values = np.zeros((len(index), 3, *self.processor.size), np.float32)
            for row in np.flatnonzero(present):
                values[row] = self.processor(self._piece(number[row]))
            batch["pixel_values"] = values
        return batch

    def _augmented(
        self, how: BoxAugmentation, numbers: np.ndarray, epoch_random: EpochRandom
    ) -> dict[str, np.ndarray]:
        """Return the changed images of a batch, and their boxes.

        Where more boxes are seen than there is room for, the largest are learned.
        """
        size, room = self.processor.size, self.boxes.shape[1]
        values = np.zeros((len(numbers), 3, *size), np.float32)
        boxes = np.zeros((len(numbers), room, 4), np.float32)
        labels = np.full((len(numbers), room), -1, np.int32)
        for row in np.flatnonzero(numbers >= 0):
            number = int(numbers[row])
            chance = epoch_random.of(number)
            pieces = self.pieces[:, 1:]
            image, corners, own = augment_boxes(number, pieces, size, how, chance, self._read)
            values[row] = self.processor(image)
            largest = np.argsort(-areas(corners), kind="stable")[:room]
            shown = relative(corners[largest], np.array([0, 0, 1, 1]))
            boxes[row, : len(largest)], labels[row, : len(largest)] = shown, own[largest]
        batch = {"pixel_values": values, "boxes": boxes, "box_labels": labels}
        return batch | self._placed(len(numbers))

    def _placed(self, rows: int) -> dict[str, np.ndarray]:
        """Return the positions of the detections, for each row, where they have any."""
        return {} if self.places is None else {"places": np.repeat(self.places[None], rows, axis=0)}

    def _read(self, number: int, view: np.ndarray) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        """Return what a window of a piece's image shows, its boxes in it, and their labels."""
        assert self.truth is not None  # of a batch that is learned
        truth = self.truth[int(self.pieces[number, 0])]
        learned = ~truth.crowd
        boxes, labels = shown_in(truth.corners[learned], truth.labels[learned], view)
        return self._shown(int(self.pieces[number, 0]), view), boxes, labels

    def _piece(self, number: int) -> Image.Image:
        return self._shown(int(self.pieces[number, 0]), self.pieces[number, 1:])

    def _shown(self, picture: int, view: np.ndarray) -> Image.Image:
        """Return what a window shows of an image; black beyond its edge."""
        return cut_image(opened(self.source, picture, self.column), [int(one) for one in view])


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
    augment: BoxAugmentation | None = None,
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
        augment: the random augmentation; None without.
        cutting: `tile` and `overlap` of `tiles.cut`, and `form`, the format of boxes.

    Raises:
        UserError: an image does not decode, a box is invalid, or a piece has too many boxes.
    """
    processor = processor.whole
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
    boxes, classes = _padded(shown, most, 1.0 if augment is None else augment.most_seen)
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
        augment=augment,
    )


def _shown(truth: Boxes, piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes that a piece shows, in the model's coordinates, and their classes."""
    learned = ~truth.crowd
    boxes, visible = within(truth.corners[learned], piece)
    return relative(boxes, piece), truth.labels[learned][visible]


def _padded(
    shown: Sequence[tuple[np.ndarray, np.ndarray]], most: int, times: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pad boxes `[E, M, 4]` and classes `[E, M]` of all pieces to the longest, times a factor."""
    longest = max((len(labels) for _, labels in shown), default=0)
    if longest > most:
        raise UserError(
            f"A piece of an image has {longest} boxes, and the model has {most} detection tokens.",
            "Cut smaller pieces (task.tile), or give a plain ViT more (model.detection_tokens).",
        )
    longest = math.ceil(longest * times)
    room = min(max(-(-longest // MULTIPLE) * MULTIPLE, 1), most)
    boxes = np.zeros((len(shown), room, 4), np.float32)
    classes = np.full((len(shown), room), -1, np.int32)
    for number, (corners, labels) in enumerate(shown):
        boxes[number, : len(labels)], classes[number, : len(labels)] = corners, labels
    return boxes, classes
