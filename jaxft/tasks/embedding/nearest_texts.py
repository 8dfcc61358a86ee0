"""The nearest texts of a split's texts, for its predictions file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxft.metrics.retrieval import wrong_before

SHOWN = 3  # nearest texts written for each text


def nearest_texts(
    anchors: list[str], positives: list[str], vectors: np.ndarray, numbers: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Yield a line for each pair: its positive, and the texts nearest to its anchor.

    Args:
        anchors, positives: the texts.
        vectors: `[examples, K, D]` unit vectors, anchors and positives first.
        numbers: `[examples, K]`; equal texts have equal numbers.
    """
    before = wrong_before(vectors[:, 0], vectors[:, 1], numbers, numbers[:, 1])
    for number, (text, positive) in enumerate(zip(anchors, positives, strict=True)):
        alike = vectors[:, 1] @ vectors[number, 0]
        near = list(dict.fromkeys(positives[i] for i in np.argsort(-alike, kind="stable")))
        best = {
            one: float(max(alike[i] for i, p in enumerate(positives) if p == one))
            for one in near[:SHOWN]
        }
        yield {
            "text": text,
            "positive": positive,
            "similarity": round(float(alike[number]), 6),
            "before": int(before[number]),
            "found": [{"text": t, "similarity": round(s, 6)} for t, s in best.items()],
        }
