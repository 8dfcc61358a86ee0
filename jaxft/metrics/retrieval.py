"""How well images find their texts, and texts their images."""

from __future__ import annotations

import numpy as np

AT = (1, 5, 10)
QUERIES = 1024  # compared with everything at a time


def retrieval_scores(images: np.ndarray, texts: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """Recall of both ways over a whole split.

    Args:
        images, texts: `[examples, D]` embeddings of length 1; example i's image and text belong
            together.
        same: `[examples]` numbers; examples with the same one have the same text, and each is a
            right answer to the other.

    Returns:
        `image_to_text_recall_at_K` and `text_to_image_recall_at_K` for 1, 5 and 10: the share of
        queries with a right answer among the K most similar; `recall_at_10`: the mean of both.
    """
    ways = {
        "image_to_text": ranks(images, texts, same),
        "text_to_image": ranks(texts, images, same),
    }
    scores = {
        f"{way}_recall_at_{most}": float(np.mean(rank < most))
        for way, rank in ways.items()
        for most in AT
    }
    scores["recall_at_10"] = sum(scores[f"{way}_recall_at_10"] for way in ways) / len(ways)
    return scores


def ranks(queries: np.ndarray, items: np.ndarray, same: np.ndarray) -> np.ndarray:
    """How many wrong items come before the first right one, for each query: `[examples]`.

    What is as similar as the right one comes before it, and so does what is no number, so that
    embeddings that say nothing find nothing.

    Args:
        queries, items: `[examples, D]`.
        same: as `retrieval_scores` has it.
    """
    found = []
    for start in range(0, len(queries), QUERIES):
        chunk = slice(start, start + QUERIES)
        scores = queries[chunk] @ items.T  # [Q, N]
        right = same[chunk, None] == same[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        found.append((~right & ~(scores < best)).sum(axis=1))
    return np.concatenate(found)
