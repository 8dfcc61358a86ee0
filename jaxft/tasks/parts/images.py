"""Images as data sources hold them: files, bytes of files, or arrays of pixels."""

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
from jaxft.data.sources.open import Source
from jaxft.errors import UserError
from jaxft.tasks.parts.examples import Examples

# Before a run starts every image's header is read, and so many bytes of images are decoded: a few
# seconds' work. What is broken further on ends the run when it is reached.
DECODED_BYTES = 64 * 2**20
PICTURE_SIDE = 96  # pixels of a picture in a report
HEAT = (255, 150, 30)  # the colour of where a model looks


@dataclass(frozen=True)
class DecodedExamples(Examples):
    """Examples with an image each, decoded when they are batched.

    Args:
        source: the rows.
        column: holds the image.
        processor: the checkpoint's.
        decoded: whether batches bring the images.
    """

    source: Source
    column: str
    processor: ImageProcessor
    decoded: bool = field(default=True, kw_only=True)

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        return {"pixel_values": (3, *self.processor.size)}

    def without(self, inputs: Collection[str]) -> Self:
        return replace(self, decoded=self.decoded and "pixel_values" not in inputs)


def pixel_values(
    source: Source, column: str, processor: ImageProcessor, index: np.ndarray
) -> np.ndarray:
    """The images of a batch: `[R, 3, H, W]` float32, zeros where a row has no example.

    Args:
        source: the rows.
        column: holds the image.
        processor: the checkpoint's.
        index: `[R, 1]` example numbers, -1 for none.

    Raises:
        UserError: an image that does not decode; it names the file or the row.
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
    how: Augmentation,
    index: np.ndarray,
    epoch_random: EpochRandom,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a batch, changed by chance and perhaps mixed with others.

    An image and what it is mixed with depend on its number and the epoch alone, not on the batch.

    Args:
        source, column, processor: the rows, what holds the image, and the checkpoint's.
        how: what is done.
        index: `[R, 1]` example numbers, -1 for none.
        epoch_random: the random numbers of the epoch.

    Returns:
        `[R, 3, H, W]` float32, and of each row the number of what is in it too and that one's
        share, `[R, 1]` each; -1 and 0 where there is none.
    """
    values = np.zeros((len(index), 3, *processor.size), np.float32)
    others, shares = np.full(index.shape, -1), np.zeros(index.shape, np.float32)
    rows = np.flatnonzero(index[:, 0] >= 0)
    chances = [epoch_random.of(int(index[row, 0])) for row in rows]

    def read(numbers: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        for (number, value), chance in zip(_values(source, column, numbers), chances, strict=True):
            yield augment(open_image(source, number, value), processor, how, chance)

    for row, pixels in zip(rows, read(index[rows, 0]), strict=True):
        values[row] = pixels
    if how.mixes:
        others[rows, 0] = [int(chance.below(len(source), 1)[0]) for chance in chances]
        pairs = zip(rows, read(others[rows, 0]), chances, strict=True)
        for row, pixels, chance in pairs:
            values[row], shares[row, 0] = mix(values[row], pixels, how, chance)
    return values, others, shares


def inputs_of(values: np.ndarray, processor: ImageProcessor) -> dict[str, np.ndarray]:
    """What a model reads of the images of a batch: their pixels, or their colours as words.

    Args:
        values: `[R, 3, H, W]` float32.
        processor: the checkpoint's.

    Returns:
        `pixel_values`; where the processor has colours, `input_ids` `[R, H W]` int32.
    """
    if processor.clusters is None:
        return {"pixel_values": values}
    return {"input_ids": np.stack([colors_of(one, processor) for one in values])}


def images_fingerprint(source: Source, column: str, processor: ImageProcessor) -> str:
    """A hash that changes with any image, or with what is done to it.

    Files are known by size and time, since a table that names them says nothing of their content.
    """
    digest = hashlib.sha256(f"{source.fingerprint}\0{column}\0{processor.fingerprint}".encode())
    for _, value in _values(source, column, range(len(source))):
        if isinstance(value, str):
            file = (source.folder / value).stat()
            digest.update(f"\0{value}\0{file.st_size}\0{file.st_mtime_ns}".encode())
    return digest.hexdigest()


def open_image(source: Source, number: int, value: Any) -> Image.Image:
    """The image that a row holds: a path from the source's folder on, bytes, or pixels.

    Raises:
        UserError: there is none, or it does not decode; it names the file or the row.
    """
    return decode(*_place(source, number, value))


def check_images(source: Source, column: str) -> None:
    """Look at every image before anything is trained on them: at its header, or all of it.

    Raises:
        UserError: an image that is missing, is none, or has too many pixels.
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
    """The image files that a person named, and those below the folders that they named.

    Raises:
        UserError: a folder without images.
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
    """An image as a small `data:` URI for a page, no longer than `side` pixels."""
    small = to_rgb(image)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def heated(pixels: np.ndarray, shares: np.ndarray, side: int = PICTURE_SIDE) -> str:
    """An image in grey, the warmer the higher a patch's share, as a small `data:` URI.

    Args:
        pixels: `[H, W, 3]` uint8, as the model saw them.
        shares: `[h, w]`, a number for each of the patches that cover it.
        side: the most pixels of a side.
    """
    least, most = shares.min(), shares.max()
    heat = (shares - least) / max(most - least, 1e-12)
    size = pixels.shape[1::-1]
    mask = Image.fromarray((255 * heat).round().astype(np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grey = Image.fromarray(pixels).convert("L").point(lambda level: 40 + level // 2)
    warm = Image.new("RGB", size, HEAT)
    return picture(
        Image.composite(warm, grey.convert("RGB"), mask.point(lambda on: on * 3 // 4)), side
    )


def exact_picture(pixels: np.ndarray) -> str:
    """Pixels `[H, W, 3]` uint8 as a `data:` URI for a page, none of them changed."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _values(
    source: Source, column: str, numbers: Sequence[int] | np.ndarray
) -> Iterator[tuple[int, Any]]:
    """The column's value in each of these rows, few rows in memory at a time."""
    for number, row in source.each([column], numbers):
        yield number, row[column]


def _place(source: Source, number: int, value: Any) -> tuple[Any, str]:
    """What `decode` reads, and what a message calls it."""
    if isinstance(value, str) and value.strip():
        path = source.folder / value
        return path, f"'{path}'"
    if isinstance(value, bytes | np.ndarray):
        return value, f"the image of {source.place(number)}"
    said = "no image" if value in ("", None) else f"neither a path nor an image but {value!r}"
    raise UserError(f"{source.place(number)} has {said}.")


def _size(image: Path | np.ndarray) -> int:
    return image.stat().st_size if isinstance(image, Path) else image.nbytes
