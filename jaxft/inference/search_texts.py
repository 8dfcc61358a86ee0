"""Text search: the lines of a file most similar to a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxft.engine.trained import task_of
from jaxft.errors import UserError
from jaxft.inference.predict import predict_given
from jaxft.tasks.embedding.task import Embedding


def search_texts(run: Path, words: str, file: Path, best: int = 10) -> list[dict[str, Any]]:
    """Find the lines most similar to some words.

    Args:
        run: the folder of a run of the embedding task.
        words: the query.
        file: one text per line; blank lines are ignored.
        best: the most matches returned.

    Returns:
        The best first: `rank`, `similarity` (the cosine), `line` (from 1) and `text`.

    Raises:
        UserError: there is no such run, it is of another task, or the file has no text.
    """
    task = task_of(run)
    if task.searches != "texts":
        raise UserError(
            f"'{run}' is a run of {task.kind}, which does not embed texts.",
            "Search texts with a run of embedding.",
        )
    assert isinstance(task, Embedding)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{file}' as text ({error}).") from None
    texts = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    if not texts:
        raise UserError(f"'{file}' holds no text.", "It needs one text per line.")
    documents = [{task.section.positive: text} for text in texts.values()]
    query, *vectors = (
        np.array(one["vector"])
        for one in predict_given(run, [[{task.section.anchor: words}], documents])
    )
    similarities = np.stack(vectors) @ query  # [texts]
    numbers = list(texts)
    return [
        {
            "rank": rank,
            "similarity": round(float(similarities[index]), 6),
            "line": numbers[index],
            "text": texts[numbers[index]],
        }
        for rank, index in enumerate(np.argsort(-similarities, kind="stable")[:best], 1)
    ]
