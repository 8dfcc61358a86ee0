"""Conversations about an image as token ids, their targets, and the prompts to generate from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.image.grid import Cut
from jaxft.data.text.answers import (
    Conversation,
    Scoring,
    WrittenConversation,
    write_conversations,
)
from jaxft.data.text.chat import ChatTemplate
from jaxft.data.text.chat_warnings import chat_warnings
from jaxft.data.text.dialogue import UNSCORED, Lesson, lesson_of
from jaxft.data.text.tokenizer import CHUNK, Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.vision_language.conversations import ImageWords

NONE = -1  # in the arrays of prompts and answers, behind their last token


@dataclass(frozen=True)
class Writer:
    """Tools that conversations are written with.

    Args:
        template: the model's chat template.
        tokenizer: the model's.
        words: those that stand for its images.
        scoring: what of a conversation is scored.
        length: the most tokens of an example.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    words: ImageWords
    scoring: Scoring
    length: int


def encode_lessons(
    writer: Writer,
    conversations: Sequence[Conversation],
    cuts: Sequence[Cut],
    name_of: Callable[[int], str],
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """Encode conversations, and count.

    Args:
        writer: what with.
        conversations: of each row; the last message is the assistant's.
        cuts: the tiles of each row's image.
        name_of: row -> its name in messages.

    Returns:
        Of each example `input_ids`, `targets`, `prompt` and `answer` (the last one and what leads
        to it; -1 behind), [tokens] int32 each; and the metadata.

    Raises:
        UserError: an answer cannot be located, or lies behind the longest example.
    """
    examples, lessons = [], []
    for lesson, example in _encoded(writer, conversations, cuts, name_of):
        lessons.append(lesson)
        examples.append(example)
    cut = {number: one.cut for number, one in enumerate(lessons) if one.cut}
    longest = {name: max(_filled(one[name]) for one in examples) for name in ("prompt", "answer")}
    return examples, {
        "rows": [one.row for one in lessons],
        "cut": cut,
        "longest": {"input_ids": max(len(one.ids) for one in lessons), **longest},
        "counts": {
            "tokens": sum(len(one.ids) for one in lessons),
            "scored": sum(int((one.targets != UNSCORED).sum()) for one in lessons),
            "unknown": sum(int((one.ids == writer.tokenizer.unknown_id).sum()) for one in lessons),
            "truncated": len(cut),
            "truncated_tokens": sum(cut.values()),
        },
        "warnings": chat_warnings(lessons, writer.tokenizer, writer.scoring.end_ids),
    }


def _filled(ids: np.ndarray) -> int:
    return int((ids != NONE).sum())


def _encoded(
    writer: Writer,
    conversations: Sequence[Conversation],
    cuts: Sequence[Cut],
    name_of: Callable[[int], str],
) -> Iterator[tuple[Lesson, dict[str, np.ndarray]]]:
    """Yield each example's lesson and arrays, few conversations at a time."""
    for first in range(0, len(conversations), CHUNK):
        part = conversations[first : first + CHUNK]
        none = [None] * len(part)
        plain = write_conversations(part, none, writer.template, writer.scoring)
        rows = [first + one.number for one in plain]
        written = [
            writer.words.write(one, cuts[row], name_of(row))
            for one, row in zip(plain, rows, strict=True)
        ]
        located = writer.tokenizer.locate([one.text for one in written])
        prompts = writer.tokenizer.encode([_prompt(one) for one in written], spelled=True).ids
        for row, one, (ids, places), prompt in zip(rows, written, located, prompts, strict=True):
            name = name_of(row)
            _check(writer, one, prompt, name)
            ends = writer.scoring.end_ids
            lesson = lesson_of(one, row, ids, places, writer.length, ends)
            yield lesson, _arrays(lesson, prompt, places[:, 0] >= one.spans[-1][0])


def _prompt(one: WrittenConversation) -> str:
    """Return the text before the last answer."""
    return one.text[: one.spans[-1][0]] if one.spans else one.text


def _check(writer: Writer, one: WrittenConversation, prompt: np.ndarray, name: str) -> None:
    """Raise a UserError unless the last answer is located, and within the longest example."""
    if not one.spans:
        raise UserError(
            f"{name}: the text from the chat template of '{writer.template.folder}' does not begin "
            "with the text before the answer, so the answer cannot be located in it."
        )
    if len(prompt) >= writer.length:
        raise UserError(
            f"{name}: its prompt has {len(prompt):,} tokens, those of the image among them, and "
            f"data.max_length is {writer.length:,}.",
            "Raise it, shorten the prompt, or set task.grid to fewer tiles.",
        )


def _arrays(lesson: Lesson, prompt: np.ndarray, behind: np.ndarray) -> dict[str, np.ndarray]:
    """Return an example's arrays, all of its length."""
    count = len(lesson.ids)
    answer = lesson.targets[:-1][behind[1:count] & (lesson.targets[:-1] != UNSCORED)]
    padded = {"prompt": np.full(count, NONE, np.int32), "answer": np.full(count, NONE, np.int32)}
    padded["prompt"][: len(prompt)], padded["answer"][: len(answer)] = prompt[:count], answer
    return {"input_ids": lesson.ids, "targets": lesson.targets, **padded}


def padded(
    rows: Sequence[np.ndarray | None], length: int, pad: int, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Pad token ids to one length, and return their mask too: [R, length] int32 each.

    Args:
        rows: the ids of each row; None of a row without an example, which is one padding token,
            since softmax needs a position to attend to.
        length: of each.
        pad: the padding token.
        left: whether the padding comes first.
    """
    ids, mask = np.full((len(rows), length), pad, np.int32), np.zeros((len(rows), length), np.int32)
    for row, own in enumerate(rows):
        own = np.array([pad], np.int32) if own is None else own
        where = slice(length - len(own), None) if left else slice(0, len(own))
        ids[row, where], mask[row, where] = own, 1
    return ids, mask


def sequence(example: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return the tokens of an example's prompt or answer."""
    values = example[name]
    return values[values != NONE]
