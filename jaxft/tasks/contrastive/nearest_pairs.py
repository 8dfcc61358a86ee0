"""The nearest texts of images and images of texts in a split, for its predictions file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxft.data.sources.source import Source
from jaxft.metrics.retrieval import wrong_before
from jaxft.tasks.parts.images import open_image, picture
from jaxft.tasks.parts.labels import column_of

TEXTS = 3  # nearest texts written for each image
QUERIES, IMAGES = 24, 6  # texts whose nearest images are stored, and how many
SIDES = ("image", "text")  # what is numbered, in order
SIDE = 72  # pixels of such an image


def nearest_pairs(
    source: Source,
    columns: tuple[str, str],
    outcomes: Mapping[str, np.ndarray],
    numbers: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yield a line for each pair of a split.

    Args:
        source: the rows.
        columns: the columns of the image and the text.
        outcomes: `image` and `text`, unit vectors `[examples, D]`.
        numbers: `[examples, 2]` of the image and of the text: equal ones have the same.

    Yields:
        `text`, `before` (wrong texts ranked before the image's own) and `found` (the nearest
        texts); `file` if the image is a file. The first texts also have `image`, `images_before`
        (wrong images ranked before their own) and `images`, the nearest.
    """
    # Images are read one at a time, since those of a split need not fit in memory.
    images, texts = column_of(source, columns[0]), list(column_of(source, columns[1]))
    image, text = outcomes["image"], outcomes["text"]
    before = wrong_before(image, text, numbers, numbers[:, 1], repeated=True)
    images_before = wrong_before(text[:QUERIES], image, numbers[:, ::-1], numbers[:, 0])
    # Of equal ones the first is shown.
    distinct = {
        side: np.unique(numbers[:, n], return_index=True)[1] for n, side in enumerate(SIDES)
    }
    pairs = set(map(tuple, numbers.tolist()))

    def nearest(side: str, of: np.ndarray, most: int) -> Iterator[tuple[int, float]]:
        rows = distinct[side]
        scores = outcomes[side][rows] @ of
        for number in np.argsort(-scores, kind="stable")[:most].tolist():
            yield int(rows[number]), round(float(scores[number]), 6)

    def shown(number: int) -> dict[str, Any]:
        image = source[number][columns[0]]
        return {**_file(image), "image": picture(open_image(source, number, image), SIDE)}

    for number, (value, words) in enumerate(zip(images, texts, strict=True)):
        matches = nearest("text", image[number], TEXTS)
        line = _file(value) | {
            "text": words,
            "before": int(before[number]),
            "found": [{"text": texts[i], "similarity": score} for i, score in matches],
        }
        if number < QUERIES:
            matches = nearest("image", text[number], IMAGES)
            line |= {
                **shown(number),
                "images_before": int(images_before[number]),
                "images": [
                    {**shown(i), "text": texts[i], "similarity": score}
                    | {"own": (int(numbers[i, 0]), int(numbers[number, 1])) in pairs}
                    for i, score in matches
                ],
            }
        yield line


def _file(image: Any) -> dict[str, Any]:
    return {"file": image} if isinstance(image, str) else {}
