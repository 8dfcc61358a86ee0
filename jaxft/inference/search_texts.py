"""Text search: the texts of a file most similar to a query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.sources.open import TABLES, open_source
from jaxft.data.text.template import is_missing
from jaxft.engine.trained import task_of
from jaxft.errors import UserError
from jaxft.inference.predict import predict_given
from jaxft.tasks.embedding.task import Embedding
from jaxft.tasks.parts.labels import column_of


def search_texts(run: Path, words: str, file: Path, best: int = 10) -> list[dict[str, Any]]:
    """Find the texts most similar to some words.

    Args:
        run: the folder of a run of the embedding task.
        words: the query.
        file: one text per line, blank ones are ignored; or a table (.csv, .jsonl, .parquet), whose
            texts are in the column of the run's `task.positive`. A text counts once.
        best: the most matches returned.

    Returns:
        The best first: `rank`, `similarity` (the cosine), `line` (from 1; of a table the row; the
        first that has the text) and `text`.

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
    first: dict[str, int] = {}
    for number, text in enumerate(_texts_of(file, task.section.positive), 1):
        if text.strip():
            first.setdefault(text, number)
    texts = {number: text for text, number in first.items()}
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


def _texts_of(file: Path, column: str) -> list[str]:
    """Return the lines of a text file, or the texts in a column of a table."""
    kind = file.suffix.lower().removeprefix(".")
    if kind in TABLES and file.is_file():
        cells = column_of(open_source(f"{kind}:{file}:ordered"), column)
        return ["" if is_missing(cell) else str(cell) for cell in cells]
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read '{file}' as text ({error}).") from None
