"""Images with masks as examples: whole, or cut into pieces."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from jaxft.data.image.images import ImageProcessor
from jaxft.data.image.tiles import cut, cut_image
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.tasks.object_detection.boxes import opened
from jaxft.tasks.parts.examples import row_marks
from jaxft.tasks.parts.images import DecodedExamples, images_fingerprint, size_of
from jaxft.tasks.semantic_segmentation.masks import (
    IGNORED,
    MaskAugmentation,
    MaskReading,
    check_size,
    cut_mask,
    read_mask,
    shaped,
)


@dataclass(frozen=True)
class MaskExamples(DecodedExamples):
    """Images or pieces of them with masks; see `jaxft.tasks.parts.examples.Examples`.

    Attributes:
        mask: the column of the mask.
        sizes: `[images, 2]` height and width of each.
        pieces: `[examples, 5]` each piece's image, left, top, width and height.
        reading: how masks are understood; None for images without.
        augment: the random augmentation; None without.
    """

    mask: str
    sizes: np.ndarray
    pieces: np.ndarray
    reading: MaskReading | None
    augment: MaskAugmentation | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def rows(self) -> np.ndarray:
        return self.pieces[:, 0]

    @property
    def random(self) -> bool:
        return self.augment is not None

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.pieces.astype(np.int64).tobytes())
        digest.update(self.images_fingerprint.encode())
        if self.reading is not None:
            masks = images_fingerprint(self.source, self.mask, self.processor)
            digest.update(f"{masks}{self.reading}".encode())
        return digest.hexdigest()

    def scored(self) -> MaskExamples:
        """Return the images without augmentation."""
        return replace(self, augment=None)

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate as `Examples` does; `mask_labels` are `[R, H, W]`, -1 for no class."""
        del row_length
        batch, shape = row_marks(index), (len(index), *self.processor.size)
        masks = np.full(shape, IGNORED, np.uint8)
        values = np.zeros((shape[0], 3, *shape[1:]), np.float32)
        for row in np.flatnonzero(index[:, 0] >= 0):
            pixels, mask = self._example(int(index[row, 0]), epoch_random)
            if pixels is not None:
                values[row] = pixels
            if mask is not None:
                masks[row] = mask
        if self.reading is not None:
            batch["mask_labels"] = np.where(masks == IGNORED, -1, masks.astype(np.int16))
        return batch | ({"pixel_values": values} if self.decoded else {})

    def _example(
        self, number: int, epoch_random: EpochRandom
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return pixel values `[3, H, W]` and classes `[H, W]` of an example."""
        picture, *rectangle = (int(one) for one in self.pieces[number])
        mask = None
        if self.reading is not None:
            value = self.source.rows([picture], [self.mask])[0][self.mask]
            mask = cut_mask(read_mask(self.source, picture, value, self.reading), rectangle)
        if not self.decoded:
            return None, None if mask is None else self._fitted(mask)
        image = cut_image(opened(self.source, picture, self.column), rectangle)
        if self.augment is not None and mask is not None:
            return self.augment(image, mask, self.processor, epoch_random.of(number))
        return self.processor(image), None if mask is None else self._fitted(mask)

    def _fitted(self, mask: np.ndarray) -> np.ndarray:
        return shaped(mask, self.processor, (0, 0, *mask.shape[::-1]))

    def merged(self, classes: np.ndarray, picture: int) -> np.ndarray:
        """Return the classes of an image's pixels, of all of its pieces: `[h, w]` uint8.

        Where pieces overlap, a pixel has the class of the piece whose edge is farthest from it.

        Args:
            classes: `[examples, H, W]` of all pieces.
            picture: which image.
        """
        height, width = self.sizes[picture].tolist()
        merged = np.zeros((height, width), np.uint8)
        depth = np.zeros((height, width), np.int64)
        for number in np.flatnonzero(self.pieces[:, 0] == picture):
            left, top, wide, high = self.pieces[number, 1:].tolist()
            own = enlarged(classes[number], (high, wide))[: height - top, : width - left]
            far = np.minimum(_from_edge(high)[:, None], _from_edge(wide))
            far = far[: height - top, : width - left]
            here = (slice(top, top + own.shape[0]), slice(left, left + own.shape[1]))
            deeper = far > depth[here]
            merged[here][deeper], depth[here][deeper] = own[deeper], far[deeper]
        return merged


def enlarged(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize classes `[H, W]` to (height, width), each pixel from the nearest one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for old, new in zip(classes.shape, size, strict=True)
    )
    return classes[rows[:, None], columns]


def _from_edge(length: int) -> np.ndarray:
    """Return how far each pixel of a line is from the nearer end: `[length]`, from 1."""
    pixels = np.arange(length)
    return np.minimum(pixels + 1, length - pixels)


def read_examples(
    source: Source,
    columns: tuple[str, str],
    reading: MaskReading | None,
    processor: ImageProcessor,
    tile: int | None,
    overlap: float,
) -> MaskExamples:
    """Read a source's images with their masks; headers alone are read.

    Args:
        source: the rows.
        columns: of the image and of the mask.
        reading: how masks are understood; None for images without.
        processor: the checkpoint's; a piece is resized to its output size, and not cropped.
        tile: height of a piece in pixels; None for whole images.
        overlap: of pieces.

    Raises:
        UserError: an image or mask is not there, or a mask has another size than its image.
    """
    processor = processor.whole
    sizes, pieces = [], []
    for number, row in source.each(list(columns) if reading else [columns[0]]):
        size = size_of(source, number, row[columns[0]])
        if reading is not None:
            check_size(source, number, row[columns[1]], size)
        own = cut(size, processor.size, tile, overlap)
        sizes.append(size)
        pieces.append(np.insert(own, 0, number, axis=1))
    return MaskExamples(
        source, columns[0], processor, columns[1], np.array(sizes), np.concatenate(pieces), reading
    )
