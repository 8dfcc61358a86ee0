"""Retrieval scores: images by texts, texts by images, and texts by what belongs to them."""

from __future__ import annotations

import numpy as np

AT = (1, 5, 10)
QUERIES = 1024  # compared with everything at a time


def retrieval_scores(
    images: np.ndarray, texts: np.ndarray, numbers: np.ndarray
) -> dict[str, float]:
    """Recall of both ways over a whole split, among its distinct images, or the texts of all rows.

    A wrong text counts as often as examples have it: among the names of ten classes in place of
    captions, the right one would else always be one of ten.

    Args:
        images, texts: `[examples, D]` embeddings of length 1; example i's image and text belong
            together.
        numbers: `[examples, 2]` of the image and of the text: equal ones have the same. Every text
            that some example has for an image is a right answer, and every image for a text.

    Returns:
        `image_to_text_recall_at_K` and `text_to_image_recall_at_K` for 1, 5 and 10: the share of
        queries with a right answer among the K most similar; `recall_at_10`: the mean of both.
    """
    directions = {
        "image_to_text": wrong_before(images, texts, numbers, numbers[:, 1], repeated=True),
        "text_to_image": wrong_before(texts, images, numbers[:, ::-1], numbers[:, 0]),
    }
    scores = {
        f"{direction}_recall_at_{most}": float(np.mean(rank < most))
        for direction, rank in directions.items()
        for most in AT
    }
    scores["recall_at_10"] = sum(
        scores[f"{direction}_recall_at_10"] for direction in directions
    ) / len(directions)
    return scores


def pair_scores(
    anchors: np.ndarray, items: np.ndarray, numbers: np.ndarray, item_numbers: np.ndarray
) -> dict[str, float]:
    """Score how well texts retrieve what belongs to them, over a split; each text counts once.

    Args:
        anchors: `[examples, D]` vectors of length 1 of what is asked.
        items: `[items, D]` vectors among which is looked; those of the examples' positives first.
        numbers: `[examples, 2 or more]` of anchor and positive: equal texts have the same. What
            belongs to a text is every positive that some example has for it.
        item_numbers: `[items]` likewise.

    Returns:
        `recall_at_1`, `recall_at_10`: the share of texts with a right answer among the most
        similar; `mean_reciprocal_rank`: the mean of 1 over the rank of the first right one.
    """
    _, once = np.unique(numbers[:, 0], return_index=True)
    before = wrong_before(anchors, items, numbers, item_numbers)[once]
    return {
        "recall_at_1": float(np.mean(before < 1)),
        "recall_at_10": float(np.mean(before < 10)),
        "mean_reciprocal_rank": float(np.mean(1 / (1 + before))),
    }


def wrong_before(
    anchors: np.ndarray,
    items: np.ndarray,
    numbers: np.ndarray,
    item_numbers: np.ndarray,
    repeated: bool = False,
) -> np.ndarray:
    """Count the wrong items before the first right one, for each anchor: `[anchors]`.

    What is as similar as the right one comes before it, and so does what is no number, so that
    embeddings that say nothing find nothing.

    Args:
        anchors: `[anchors, D]`, of the first examples.
        items, numbers, item_numbers: see `pair_scores`.
        repeated: whether an item counts as often as it is there, or once.
    """
    # Equal ones have equal vectors: one of each.
    _, once, counts = np.unique(item_numbers, return_index=True, return_counts=True)
    counts = counts if repeated else np.ones_like(counts)
    items, item_numbers = items[once], item_numbers[once]
    wrong = np.empty(len(anchors), np.int64)
    for start in range(0, len(anchors), QUERIES):
        chunk = slice(start, min(start + QUERIES, len(anchors)))
        scores, right = anchors[chunk] @ items.T, _right(numbers, item_numbers, chunk)  # [Q, N]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        wrong[chunk] = (~right & ~(scores < best)) @ counts
    return wrong


def ranking_loss(
    anchors: np.ndarray,
    items: np.ndarray,
    numbers: np.ndarray,
    item_numbers: np.ndarray,
    temperature: float,
) -> float:
    """The mean cross-entropy of each example's positive among all texts that are wrong.

    Arguments: see `pair_scores`; the cosines are divided by `temperature`.
    """
    _, once = np.unique(item_numbers, return_index=True)
    distinct, total = item_numbers[once], 0.0
    for start in range(0, len(anchors), QUERIES):
        chunk = slice(start, start + QUERIES)
        scores = (anchors[chunk] @ items[once].T).astype(np.float64) / temperature
        own = distinct[None, :] == numbers[chunk, 1:2]
        right = _right(numbers, distinct, chunk)
        scores = np.where(right & ~own, -np.inf, scores)
        most = scores.max(axis=1)
        logs = most + np.log(np.exp(scores - most[:, None]).sum(axis=1))
        total += float((logs - scores[own]).sum())
    return total / len(anchors)


def _right(numbers: np.ndarray, item_numbers: np.ndarray, chunk: slice) -> np.ndarray:
    """Which of some distinct texts belong to some examples' anchors: `[Q, N]` bool."""
    index = {number: at for at, number in enumerate(item_numbers.tolist())}
    belong: dict[int, list[int]] = {}
    for anchor, positive in numbers[:, :2].tolist():
        belong.setdefault(anchor, []).append(index[positive])
    right = np.zeros((len(numbers[chunk]), len(item_numbers)), bool)
    for row, anchor in enumerate(numbers[chunk, 0].tolist()):
        right[row, belong[anchor]] = True
    return right
