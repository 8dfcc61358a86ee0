"""The nearest texts of images and images of texts in a split, for its predictions file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxft.data.sources.source import Source
from jaxft.metrics.retrieval import ranks
from jaxft.tasks.parts.images import open_image, picture
from jaxft.tasks.parts.labels import column_of

TEXTS = 3  # nearest texts written for each image
QUERIES, IMAGES = 24, 6  # texts whose nearest images are stored, and how many
SIDE = 72  # pixels of such an image


def nearest_pairs(
    source: Source,
    columns: tuple[str, str],
    outcomes: Mapping[str, np.ndarray],
    same: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yield a line for each pair of a split.

    Args:
        source: the rows.
        columns: the columns of the image and the text.
        outcomes: `image` and `text`, unit vectors `[examples, D]`.
        same: `[examples]`, equal numbers for equal texts.

    Yields:
        `text`, `before` (wrong texts ranked before the image's own) and `found` (the nearest
        texts); `file` if the image is a file. The first texts also have `image`, `images_before`
        (wrong images ranked before their own) and `images`, the nearest.
    """
    # Images are read one at a time, since those of a split need not fit in memory.
    images, texts = column_of(source, columns[0]), list(column_of(source, columns[1]))
    before = ranks(outcomes["image"], outcomes["text"], same)
    images_before = ranks(outcomes["text"][:QUERIES], outcomes["image"], same)

    def nearest(side: str, of: np.ndarray, most: int) -> Iterator[tuple[int, float]]:
        scores = outcomes[side] @ of
        for number in np.argsort(-scores, kind="stable")[:most].tolist():
            yield number, round(float(scores[number]), 6)

    def shown(number: int) -> dict[str, Any]:
        image = source[number][columns[0]]
        return {**_file(image), "image": picture(open_image(source, number, image), SIDE)}

    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        matches = nearest("text", outcomes["image"][number], TEXTS)
        line = _file(image) | {
            "text": text,
            "before": int(before[number]),
            "found": [{"text": texts[i], "similarity": score} for i, score in matches],
        }
        if number < QUERIES:
            matches = nearest("image", outcomes["text"][number], IMAGES)
            line |= {
                **shown(number),
                "images_before": int(images_before[number]),
                "images": [
                    {**shown(i), "text": texts[i], "similarity": score}
                    | {"own": bool(same[i] == same[number])}
                    for i, score in matches
                ],
            }
        yield line


def _file(image: Any) -> dict[str, Any]:
    return {"file": image} if isinstance(image, str) else {}
