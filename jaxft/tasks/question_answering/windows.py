"""Windows: a question with a part of its context each, as token ids.

A context that is too long for a row is read in windows that overlap, so that an answer that one
cuts is whole in the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.parts.examples import values_of
from jaxft.tasks.parts.token_examples import TokenExamples, row_targets
from jaxft.tasks.question_answering.answers import Answer, Question
from jaxft.tasks.question_answering.section import QuestionAnsweringSection as Section

USUAL_STRIDE = 128  # tokens that windows share, as in transformers' examples


@dataclass(frozen=True)
class Windows(TokenExamples):
    """Windows of contexts; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: `input_ids`, `token_type_ids`, `spans` (`[tokens, 2]`, the characters of the context
            that each token stands for) and `inside` (1 for a token of the context).
        questions: each row of the source.
        targets: `[windows, 2]` int32, the answer's first and last token, 0 and 0 in a window
            without it; None where rows have no answers.
    """

    questions: Sequence[Question]
    targets: np.ndarray | None

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"], np.int64)

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """Nothing: windows lose no token of a context."""
        return {}

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate one batch.

        Returns:
            The arrays of `collate_rows`; `inside` `[R, T]`, 1 for a token of a context; with
            answers `answer` `[R, S, 2]`, its first and last token counted from the window's first.
        """
        taken = self.tokens.take(index)
        batch = collate_rows(taken, index, row_length)
        inside = row_targets(index, row_length, lambda number: taken[number]["inside"])
        batch["inside"] = np.maximum(inside, 0)
        if self.targets is not None:
            batch["answer"] = values_of(self.targets, index)
        return batch


def encode_windows(
    questions: Sequence[Question], tokenizer: Tokenizer, length: int, section: Section
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """Encode each question with its context, in as many windows as that takes.

    Args:
        questions: of each row.
        tokenizer: the model's.
        length: the most tokens of a window.
        section: the config's `task`.

    Returns:
        The windows and their metadata (see `Tools.once`): counts, and the row of each window.

    Raises:
        UserError: a window has no room for more than it shares with the one before.
    """
    asked = [one.question for one in questions]
    short, cuts = _shortened(asked, tokenizer, section.max_query_length)
    shared = _shared_tokens(short, tokenizer, length, section.doc_stride)
    contexts = [one.context for one in questions]
    windows, rows = [], []
    each = tokenizer.windows(short, contexts, length, shared)
    for row, encodings in enumerate(each):
        for one in encodings:
            inside = np.array([number == 1 for number in one.sequence_ids], np.int32)
            spans = np.array(one.offsets, np.int32).reshape(-1, 2) * inside[:, None]
            types = np.array(one.type_ids, np.int32)
            ids = np.array(one.ids, np.int32)
            windows.append(
                {"input_ids": ids, "token_type_ids": types, "spans": spans, "inside": inside}
            )
            rows.append(row)
    return windows, {
        "counts": {
            "tokens": sum(len(one["input_ids"]) for one in windows),
            "unknown": sum(
                int((one["input_ids"] == tokenizer.unknown_id).sum()) for one in windows
            ),
            "questions": len(questions),
            "truncated": sum(cut > 0 for cut in cuts),
            "truncated_tokens": sum(cuts),
        },
        "rows": rows,
    }


def _shortened(
    texts: Sequence[str], tokenizer: Tokenizer, most: int
) -> tuple[list[str], list[int]]:
    """Return the texts, each cut after its first `most` tokens, and the tokens cut from each."""
    located = tokenizer.locate(list(texts))
    short = [
        text if len(ids) <= most else text[: int(spans[most - 1, 1])]
        for text, (ids, spans) in zip(texts, located, strict=True)
    ]
    return short, [max(0, len(ids) - most) for ids, _ in located]


def _shared_tokens(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, asked: int | None
) -> int:
    """Return how many tokens neighboring windows share.

    Raises:
        UserError: a window would not advance, since the longest question leaves it too little room.
    """
    encoded = tokenizer.encode(list(texts), [""] * len(texts))
    room = length - max(map(len, encoded.ids))
    shared = min(USUAL_STRIDE, room // 2) if asked is None else asked
    if room <= shared or shared < 1:
        raise UserError(
            f"task.doc_stride: a window of {length} tokens has room for {max(room, 0)} of a "
            f"context beside the longest question, {max(shared, 1)} of them shared.",
            "Lower it or task.max_query_length, or raise data.max_length.",
        )
    return shared


def answer_targets(examples: Windows) -> np.ndarray:
    """Return the first and last token of each window's answer: `[windows, 2]` int32.

    A window that does not hold the whole of its question's first answer has none: 0 and 0, the
    token that a text begins with.
    """
    targets = np.zeros((len(examples), 2), np.int32)
    for number, row in enumerate(examples.rows.tolist()):
        answers = examples.questions[row].answers
        if answers:
            targets[number] = _tokens_of(answers[0], examples.tokens[number])
    return targets


def _tokens_of(answer: Answer, window: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Return the first and last token of an answer in a window; 0 and 0 if it is not in it."""
    places = np.flatnonzero(window["inside"])
    if not len(places):
        return 0, 0
    starts, ends = window["spans"][places].T
    first = int(np.searchsorted(starts, answer.start, side="right")) - 1
    last = int(np.searchsorted(ends, answer.end, side="left"))
    if first < 0 or last >= len(places) or last < first:
        return 0, 0
    if ends[first] <= answer.start:  # the answer begins before the window's first whole word
        first += 1
    return int(places[first]), int(places[max(first, last)])
