"""Images of data sources: files, bytes of files, or arrays of pixels."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from jaxft.data.image.augment import Augmentation, augment, mix
from jaxft.data.image.colors import colors_of
from jaxft.data.image.images import ImageProcessor, check_header, decode, to_rgb
from jaxft.data.random import EpochRandom
from jaxft.data.sources.images import images_below
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.tasks.parts.contract import Task
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.sections import ImageTextSection

# Before a run starts, every image's header is read and images of this total size are decoded, which
# takes a few seconds. A corrupt image after them ends the run when it is read.
DECODED_BYTES = 64 * 2**20
PICTURE_SIDE = 96  # pixels of an image in a report
HEAT = (255, 150, 30)  # the color of high attention


@dataclass(frozen=True)
class DecodedExamples(Examples):
    """Examples with one image each, decoded when they are batched.

    Args:
        source: the rows.
        column: the column of the image.
        processor: the checkpoint's image processor.
        decoded: whether batches include the images.
    """

    source: Source
    column: str
    processor: ImageProcessor
    decoded: bool = field(default=True, kw_only=True)

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        # Sequences of colors are tokens, which a stem reads even if its trunk's output is cached.
        pixels = {"pixel_values": (3, *self.processor.size)}
        return pixels if self.processor.clusters is None else {}

    @property
    def colors(self) -> ImageProcessor | None:
        return None if self.processor.clusters is None else self.processor

    def __len__(self) -> int:
        return len(self.source)

    @property
    def images_fingerprint(self) -> str:
        """A hash that changes with any image, or with the processor."""
        return images_fingerprint(self.source, self.column, self.processor)

    def without(self, inputs: Collection[str]) -> Self:
        return replace(self, decoded=self.decoded and not set(inputs) & set(self.inputs))

    def pixel_values(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Return `pixel_values` of the examples `[R, 1]`; nothing without images."""
        if not self.decoded:
            return {}
        return {"pixel_values": pixel_values(self.source, self.column, self.processor, index)}


class ImageTextTask(Task):
    """A task of images with a text each."""

    section: ImageTextSection

    @property
    def columns(self) -> tuple[str, str]:
        return (self.section.image, self.section.text)

    @property
    def text_column(self) -> str:
        return self.section.text


def pixel_values(
    source: Source, column: str, processor: ImageProcessor, index: np.ndarray
) -> np.ndarray:
    """Decode the images of a batch: `[R, 3, H, W]` float32, zeros where a row has no example.

    Args:
        source: the rows.
        column: the column of the image.
        processor: the checkpoint's image processor.
        index: `[R, 1]` example numbers, -1 for none.

    Raises:
        UserError: an image does not decode; the message names the file or the row.
    """
    values = np.zeros((len(index), 3, *processor.size), np.float32)
    rows = np.flatnonzero(index[:, 0] >= 0)
    numbers = index[rows, 0]
    for row, (number, value) in zip(rows, _values(source, column, numbers), strict=True):
        values[row] = processor(open_image(source, number, value))
    return values


def augmented_values(
    source: Source,
    column: str,
    processor: ImageProcessor,
    augmentation: Augmentation,
    index: np.ndarray,
    epoch_random: EpochRandom,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the images of a batch, augmented and, if configured, mixed with others.

    An image's augmentation and partner depend only on its number and the epoch, not on the batch.

    Args:
        source, column, processor: as in `pixel_values`.
        augmentation: the random changes.
        index: `[R, 1]` example numbers, -1 for none.
        epoch_random: the random numbers of the epoch.

    Returns:
        `[R, 3, H, W]` float32, and each row's partner in the mixture and its share, `[R, 1]`
        each; -1 and 0 without one.
    """
    values = np.zeros((len(index), 3, *processor.size), np.float32)
    others, shares = np.full(index.shape, -1), np.zeros(index.shape, np.float32)
    rows = np.flatnonzero(index[:, 0] >= 0)
    chances = [epoch_random.of(int(index[row, 0])) for row in rows]

    def read(numbers: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        for (number, value), chance in zip(_values(source, column, numbers), chances, strict=True):
            yield augment(open_image(source, number, value), processor, augmentation, chance)

    for row, pixels in zip(rows, read(index[rows, 0]), strict=True):
        values[row] = pixels
    if augmentation.mixes:
        others[rows, 0] = [int(chance.below(len(source), 1)[0]) for chance in chances]
        pairs = zip(rows, read(others[rows, 0]), chances, strict=True)
        for row, pixels, chance in pairs:
            values[row], shares[row, 0] = mix(values[row], pixels, augmentation, chance)
    return values, others, shares


def inputs_of(values: np.ndarray, processor: ImageProcessor) -> dict[str, np.ndarray]:
    """Return a model's inputs for the images of a batch: pixels, or color ids as tokens.

    Args:
        values: `[R, 3, H, W]` float32.
        processor: the checkpoint's image processor.

    Returns:
        `pixel_values`; `input_ids` `[R, H W]` int32 if the processor has color clusters.
    """
    if processor.clusters is None:
        return {"pixel_values": values}
    return {"input_ids": np.stack([colors_of(one, processor) for one in values])}


def images_fingerprint(source: Source, column: str, processor: ImageProcessor) -> str:
    """Compute a hash that changes with any image, or with the processor.

    Files are identified by size and modification time, since their table lists only names.
    """
    digest = hashlib.sha256(f"{source.fingerprint}\0{column}\0{processor.fingerprint}".encode())
    for number, value in _values(source, column, range(len(source))):
        if isinstance(value, str):
            file = source.path_of(number, value).stat()
            digest.update(f"\0{value}\0{file.st_size}\0{file.st_mtime_ns}".encode())
    return digest.hexdigest()


def open_image(source: Source, number: int, value: Any) -> Image.Image:
    """Open a row's image: a path relative to the source's folder, bytes, or pixels.

    Raises:
        UserError: there is none, or it does not decode; the message names the file or the row.
    """
    return decode(*_place(source, number, value))


def size_of(source: Source, number: int, value: Any) -> tuple[int, int]:
    """Return the (height, width) of a row's image, of which the header alone is read.

    Raises:
        UserError: as `open_image`, of what a header shows.
    """
    return check_header(*_place(source, number, value))


def check_images(source: Source, column: str) -> None:
    """Check every image before training, by its header or whole.

    Raises:
        UserError: an image is missing, cannot be decoded, or has too many pixels.
    """
    left = DECODED_BYTES
    for number, value in _values(source, column, range(len(source))):
        image, name = _place(source, number, value)
        if left > 0:
            decode(image, name)
            left -= len(image) if isinstance(image, bytes) else _size(image)
        else:
            check_header(image, name)


def paths_from_input(inputs: Iterable[str]) -> Iterator[str]:
    """Yield the paths of image files, and of all images below folders.

    Raises:
        UserError: a folder has no images.
    """
    for one in inputs:
        path = Path(one).expanduser()
        if not path.is_dir():
            yield str(path)
            continue
        files = images_below(path)
        if not files:
            raise UserError(f"The folder '{one}' holds no images.")
        yield from map(str, files)


def picture(image: Image.Image, side: int = PICTURE_SIDE) -> str:
    """Encode an image as a small `data:` URI of at most `side` pixels per side."""
    small = to_rgb(image)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def heated(pixels: np.ndarray, shares: np.ndarray, side: int = PICTURE_SIDE) -> str:
    """Overlay a heat map on a gray image, as a small `data:` URI.

    Args:
        pixels: `[H, W, 3]` uint8, the model's input.
        shares: `[h, w]`, a value per patch.
        side: the most pixels per side.
    """
    least, most = shares.min(), shares.max()
    heat = (shares - least) / max(most - least, 1e-12)
    size = pixels.shape[1::-1]
    mask = Image.fromarray((255 * heat).round().astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    gray = Image.fromarray(pixels).convert("L").point(lambda level: 40 + level // 2)
    warm = Image.new("RGB", size, HEAT)
    return picture(
        Image.composite(warm, gray.convert("RGB"), mask.point(lambda on: on * 3 // 4)), side
    )


def exact_picture(pixels: np.ndarray) -> str:
    """Encode pixels `[H, W, 3]` uint8 losslessly as a `data:` URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _values(
    source: Source, column: str, numbers: Sequence[int] | np.ndarray
) -> Iterator[tuple[int, Any]]:
    """Yield each row number and its value in a column, with few rows in memory at a time."""
    for number, row in source.each([column], numbers):
        yield number, row[column]


def _place(source: Source, number: int, value: Any) -> tuple[Any, str]:
    """Return the input of `decode`, and its name in messages."""
    if isinstance(value, str) and value.strip():
        path = source.path_of(number, value)
        return path, f"'{path}'"
    if isinstance(value, bytes | np.ndarray):
        return value, f"the image of {source.place(number)}"
    content = "no image" if value in ("", None) else f"{value!r}, which is no path or image"
    raise UserError(f"{source.place(number)} has {content}.", "Fill it in, or leave the row out.")


def _size(image: Path | np.ndarray) -> int:
    return image.stat().st_size if isinstance(image, Path) else image.nbytes
