"""SQuAD's JSON as rows: articles of paragraphs, each a context with questions and their answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxft.bounds import MOST_SQUAD_BYTES
from jaxft.data.sources.files import check_is_file
from jaxft.data.sources.reader import MemoryReader, Row
from jaxft.errors import UserError
from jaxft.storage.files import sha256
from jaxft.storage.json_files import read_json_object


def open_squad(path: Path) -> MemoryReader:
    """Open SQuAD's JSON, 1.1 or 2.0: a row a question, `question`, `context`, `answers` and `id`.

    A question that is marked as impossible has no answers, whatever is written beside it.

    Raises:
        UserError: no such file, or other content.
    """
    check_is_file(path)
    try:
        rows = list(_rows(read_json_object(path, most_bytes=MOST_SQUAD_BYTES)))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a SQuAD file ({type(error).__name__}: {error}).",
            "A SQuAD file has data, a list of articles with paragraphs (context, qas), whose qas "
            "have a question and answers (text, answer_start).",
        ) from None
    return MemoryReader(rows, sha256(path), path.parent)


def _rows(content: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the row of each question, in order."""
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for one in paragraph["qas"]:
                impossible = bool(one.get("is_impossible"))
                yield {
                    "id": one.get("id"),
                    "question": one["question"],
                    "context": paragraph["context"],
                    "answers": [] if impossible else list(one["answers"]),
                }
