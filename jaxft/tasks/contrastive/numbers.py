"""Numbers of a split's distinct images and texts, by which it is known what belongs together."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator

import numpy as np

from jaxft.data.sources.source import Source


def numbers_of(source: Source, columns: tuple[str, str]) -> np.ndarray:
    """Number the images and the texts of rows, equal ones alike: `[examples, 2]`.

    Args:
        source: the rows; a file of an image may be that of several.
        columns: of the image and of the text.
    """
    texts = (row[columns[1]] for _, row in source.each([columns[1]]))
    return np.stack([_numbered(_images(source, columns[0])), _numbered(texts)], axis=1)


def _images(source: Source, column: str) -> Iterator[Hashable]:
    """Yield what each row's image is known by: its file, or its content."""
    for number, row in source.each([column]):
        value = row[column]
        if isinstance(value, str):
            yield source.path_of(number, value)
        elif isinstance(value, np.ndarray):
            yield value.shape, hashlib.sha256(value.tobytes()).digest()
        else:
            yield hashlib.sha256(value).digest()


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in values], np.int64)
