"""The search story of texts: words in, the lines of a file that are most like them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxft.engine.trained import task_of
from jaxft.errors import UserError
from jaxft.inference.predict import predict


def search_texts(run: Path, words: str, file: Path, best: int = 10) -> list[dict[str, Any]]:
    """Find the lines that are most like some words.

    Args:
        run: the folder of a run of the embedding task.
        words: what is looked for.
        file: one text a line; empty lines are passed over.
        best: how many are given.

    Returns:
        The best first: `rank`, `similarity` (the cosine), `line` (from 1) and `text`.

    Raises:
        UserError: no such run, another task's, or a file without texts.
    """
    task = task_of(run)
    if task.searches != "texts":
        raise UserError(
            f"'{run}' is a run of {task.kind}, which makes no vectors of texts.",
            "Search texts with a run of embedding.",
        )
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{file}' as text ({error}).") from None
    texts = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    if not texts:
        raise UserError(f"'{file}' holds no text.")
    query, *vectors = (np.array(one["vector"]) for one in predict(run, [words, *texts.values()]))
    alike = np.stack(vectors) @ query  # [texts]
    numbers = list(texts)
    return [
        {
            "rank": rank,
            "similarity": round(float(alike[place]), 6),
            "line": numbers[place],
            "text": texts[numbers[place]],
        }
        for rank, place in enumerate(np.argsort(-alike, kind="stable")[:best], 1)
    ]
