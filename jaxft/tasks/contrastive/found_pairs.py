"""What images and texts find of each other in a split, for its predictions file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxft.data.sources.open import Source
from jaxft.metrics.retrieval import ranks
from jaxft.tasks.parts.images import open_image, picture
from jaxft.tasks.parts.labels import column_of

TEXTS = 3  # that are written beside an image
QUERIES, IMAGES = 24, 6  # first texts whose nearest images are kept as pictures, and how many
SIDE = 72  # pixels of such a picture


def found_pairs(
    source: Source,
    columns: tuple[str, str],
    outcomes: Mapping[str, np.ndarray],
    same: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """A line for each pair of a split.

    Args:
        source: the rows.
        columns: which hold the image and the text.
        outcomes: `image` and `text`, `[examples, D]` of length 1.
        same: `[examples]`, equal where the texts are.

    Yields:
        `text`, `before` (wrong texts that come before the image's own) and `found` (its nearest
        texts); `file` where the image is one. The first texts have `image`, `images_before` (wrong
        images that come before their own) and `images`, their nearest.
    """
    # Images are read one at a time: a split's own need not fit in memory.
    images, texts = column_of(source, columns[0]), list(column_of(source, columns[1]))
    before = ranks(outcomes["image"], outcomes["text"], same)
    images_before = ranks(outcomes["text"][:QUERIES], outcomes["image"], same)

    def nearest(way: str, of: np.ndarray, most: int) -> Iterator[tuple[int, float]]:
        scores = outcomes[way] @ of
        for number in np.argsort(-scores, kind="stable")[:most].tolist():
            yield number, round(float(scores[number]), 6)

    def seen(number: int) -> dict[str, Any]:
        image = source[number][columns[0]]
        return {**_file(image), "image": picture(open_image(source, number, image), SIDE)}

    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        found = nearest("text", outcomes["image"][number], TEXTS)
        line = _file(image) | {
            "text": text,
            "before": int(before[number]),
            "found": [{"text": texts[i], "similarity": score} for i, score in found],
        }
        if number < QUERIES:
            found = nearest("image", outcomes["text"][number], IMAGES)
            line |= {
                **seen(number),
                "images_before": int(images_before[number]),
                "images": [
                    {**seen(i), "text": texts[i], "similarity": score}
                    | {"own": bool(same[i] == same[number])}
                    for i, score in found
                ],
            }
        yield line


def _file(image: Any) -> dict[str, Any]:
    return {"file": image} if isinstance(image, str) else {}
