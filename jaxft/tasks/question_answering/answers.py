"""Answers to questions, read from the cells of rows in the forms that SQuAD's copies have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.text.template import is_missing
from jaxft.tasks.parts.labels import FILL, BadValue, text_of
from jaxft.tasks.question_answering.section import QuestionAnsweringSection as Section

FORM = "Write {text: [...], answer_start: [...]}, or the text and name task.answer_start."
SHOWN = 40  # characters of a text in a message


@dataclass(frozen=True)
class Answer:
    """An answer in a context.

    Attributes:
        text: the part of the context.
        start: the character that it begins at.
    """

    text: str
    start: int

    @property
    def end(self) -> int:
        """Return the character after it."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Question:
    """A row: a question, the text to look in, and its answers, if they are known."""

    question: str
    context: str
    answers: tuple[Answer, ...] = ()


def read_question(row: Mapping[str, Any], section: Section, labelled: bool = True) -> Question:
    """Read a row.

    Args:
        row: its cells.
        section: the config's `task`.
        labelled: whether it has answers.

    Raises:
        BadValue: a text is missing or empty, an answer is not where it is said to be, or there is
            none and the config allows no such row.
    """
    question = text_of(row[section.question], section.question)
    context = text_of(row[section.context], section.context)
    if not labelled:
        return Question(question, context)
    answers = tuple(_answers(row, section, context))
    for answer in answers:
        _check(answer, context, section)
    if not answers and not section.no_answer:
        raise BadValue(
            f"has no {section.answers}", f"{FILL} Questions without one need task.no_answer=true."
        )
    return Question(question, context, answers)


def _answers(row: Mapping[str, Any], section: Section, context: str) -> list[Answer]:
    """Return the answers in a row, not yet compared with the context."""
    cell, column = row[section.answers], section.answers
    if isinstance(cell, Mapping):
        texts, starts = (_as_list(cell.get(key)) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise BadValue(f"has {len(texts)} texts and {len(starts)} starts in {column}", FORM)
        return [_answer(*pair, column) for pair in zip(texts, starts, strict=True)]
    if isinstance(cell, list | tuple | np.ndarray):
        if not all(isinstance(one, Mapping) for one in cell):
            raise BadValue(f"has {column} that are no answers ({str(cell)[:SHOWN]!r})", FORM)
        return [_answer(one.get("text"), one.get("answer_start"), column) for one in cell]
    if is_missing(cell):
        return []
    text = text_of(cell, column)
    if section.answer_start is not None:
        return [_answer(text, row[section.answer_start], section.answer_start)]
    if (start := context.find(text)) < 0:
        raise BadValue(
            f"has the answer {text[:SHOWN]!r}, which is not in its {section.context}",
            "An answer is a part of the context, letter by letter.",
        )
    return [Answer(text, start)]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | np.ndarray) else [value]


def _answer(text: Any, start: Any, column: str) -> Answer:
    """Return an answer of a text and a number, which a CSV file holds as a text."""
    text = text_of(text, column)
    number = str(start).removesuffix(".0")
    if not number.isdecimal():
        raise BadValue(f"has the start {str(start)[:SHOWN]!r} of an answer, which is no character")
    return Answer(text, int(number))


def _check(answer: Answer, context: str, section: Section) -> None:
    """Raise BadValue if an answer is not where it is said to be."""
    if (there := context[answer.start : answer.end]) != answer.text:
        raise BadValue(
            f"has the answer {answer.text[:SHOWN]!r} at character {answer.start} of its "
            f"{section.context}, where {there[:SHOWN]!r} stands",
            "Starts are counted in characters from 0.",
        )
