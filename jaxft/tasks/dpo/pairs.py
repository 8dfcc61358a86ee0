"""Preference pairs: a prompt with two answers, read from rows, as two token sequences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.text.answers import ASSISTANT, Conversation, Scoring
from jaxft.data.text.chat import ChatTemplate
from jaxft.data.text.chat_warnings import chat_warnings
from jaxft.data.text.dialogue import UNSCORED, Lesson, of_conversations
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.tasks.dpo.loss import REFERENCE
from jaxft.tasks.parts.examples import values_of
from jaxft.tasks.parts.labels import BadValue, text_of
from jaxft.tasks.parts.token_examples import GroupedExamples, row_targets

WHOLE = 2**31  # a length that truncates nothing


@dataclass(frozen=True)
class Pair:
    """A row: the messages of its prompt, the preferred answer and the other one."""

    prompt: Conversation
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Pairs(GroupedExamples):
    """Token sequences of preference pairs; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        tokens: `input_ids` and `targets` of each sequence: chosen, rejected, chosen, ...
        reference: `[pairs, 2]` float32 log-probabilities of the answers under the reference
            model; None before they are computed.
    """

    reference: np.ndarray | None = None

    @property
    def count(self) -> int:
        return 2

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """The number of tokens truncated from a pair, where there are any."""
        return {int(pair): {"cut": cut} for pair, cut in self.tokens.meta["cut"].items()}

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"])

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        """Collate one batch: see `GroupedExamples.rows_of`.

        Returns:
            Its arrays, `targets` `[R, T]` and `reference_log_probs` `[R, S, 2]`.
        """
        batch = self.rows_of(index, row_length)
        targets = row_targets(
            self.sequences(index), row_length, lambda number: self.tokens[number]["targets"]
        )
        batch["targets"] = targets
        if self.reference is not None:
            batch[REFERENCE] = values_of(self.reference, index).astype(np.float32)
        return batch


def prompt_of(cell: Any, column: str) -> Conversation:
    """Return the messages of a prompt; a text is the user's only message.

    Raises:
        BadValue: it is empty, or no conversation that an answer can follow.
    """
    if not isinstance(cell, list | tuple):
        return [{"role": "user", "content": text_of(cell, column)}]
    messages = [one for one in cell if isinstance(one, Mapping) and "content" in one]
    if not messages or len(messages) < len(cell) or messages[-1].get("role") == ASSISTANT:
        raise BadValue(
            f"has no prompt in {column}",
            "A prompt is a text, or a list of messages {role, content} that ends before the "
            "assistant's answer.",
        )
    return messages


def answer_of(cell: Any, column: str) -> str:
    """Return the text of an answer: a text, or a list of one message by the assistant.

    Raises:
        BadValue: it is neither.
    """
    if isinstance(cell, list | tuple) and len(cell) == 1 and isinstance(cell[0], Mapping):
        if cell[0].get("role") != ASSISTANT:
            raise BadValue(f"has no answer by the {ASSISTANT} in {column}")
        cell = cell[0].get("content")
    return text_of(cell, column)


def sampled_answers(prompts: Sequence[Conversation], answers: Sequence[str]) -> list[str | None]:
    """Sample an answer of another row for each row, the same in each run.

    Args:
        prompts: the rows' prompts.
        answers: the rows' answers.

    Returns:
        Answers that no row with the same prompt has; None where every answer is one of those.
    """
    names = [json.dumps([dict(message) for message in prompt]) for prompt in prompts]
    right: dict[str, set[str]] = {}
    for name, answer in zip(names, answers, strict=True):
        right.setdefault(name, set()).add(answer)
    count = len(answers)
    sampled: list[str | None] = []
    for row, name in enumerate(names):
        start = int(FIRST_EPOCH.of(row).below(count, 1)[0])
        others = (answers[(start + step) % count] for step in range(count))
        sampled.append(next((one for one in others if one not in right[name]), None))
    return sampled


def encode_pairs(
    pairs: Sequence[Pair],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    length: int,
    places: Sequence[str],
    end_ids: frozenset[int],
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """Encode pairs, chosen before rejected; the metadata are counts, truncated tokens and rows.

    Args:
        pairs: of each row.
        template: writes the conversations.
        tokenizer: the model's.
        length: the most tokens of a sequence; the rest is truncated.
        places: each row's name in messages.
        end_ids: the tokens at which generation stops.

    Returns:
        The examples and their metadata: see `Tools.once`. A pair with an answer that has no token
        within `length` is left out.
    """
    written = [
        [*pair.prompt, {"role": ASSISTANT, "content": answer}]
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    scoring = Scoring("last", end_ids=end_ids)
    lessons = list(
        of_conversations(
            written, template, tokenizer, WHOLE, lambda n: places[n // 2], scoring=scoring
        )
    )
    taught = [_cut(lesson, length) for lesson in lessons]
    used = [row for row in range(len(pairs)) if all(map(_scored, taught[2 * row : 2 * row + 2]))]
    whole = [taught[number] for row in used for number in (2 * row, 2 * row + 1)]
    cuts = {
        number: whole[2 * number].cut + whole[2 * number + 1].cut for number in range(len(used))
    }
    unknown = tokenizer.unknown_id
    return [{"input_ids": one.ids, "targets": one.targets} for one in whole], {
        "counts": {
            "tokens": sum(len(one.ids) for one in whole),
            "scored": sum(map(_scored, whole)),
            "unknown": sum(int((one.ids == unknown).sum()) for one in whole),
            "truncated": sum(one.cut > 0 for one in whole),
            "truncated_tokens": sum(cuts.values()),
            "left_out": len(pairs) - len(used),
        },
        "cut": {number: cut for number, cut in cuts.items() if cut},
        "rows": used,
        "warnings": chat_warnings(lessons, tokenizer, end_ids),
    }


def _scored(lesson: Lesson) -> int:
    """Count the scored tokens of a sequence."""
    return int((lesson.targets != UNSCORED).sum())


def _cut(lesson: Lesson, length: int) -> Lesson:
    """Truncate a sequence; its last token has no next one, so that it is not scored."""
    targets = lesson.targets[:length].copy()
    targets[length - 1 :] = UNSCORED
    return Lesson(lesson.row, lesson.ids[:length], targets, max(len(lesson.ids) - length, 0))
