"""Training examples of a causal model: tokens, and the targets that are scored.

Every token of a document is scored; of a conversation only the assistant's messages are, with their
end tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.data.text.chat import ChatTemplate
from jaxft.data.text.tokenizer import CHUNK, Tokenizer
from jaxft.errors import UserError

UNSCORED = -1  # the target of a position whose next token is not scored
ASSISTANT = "assistant"
Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Lesson:
    """One example.

    Args:
        row: the number of its text or conversation.
        ids: [tokens] int32.
        targets: the next token, [tokens] int32; -1 where none is scored.
        cut: tokens truncated at the end of the text.
    """

    row: int
    ids: np.ndarray
    targets: np.ndarray
    cut: int = 0


def of_documents(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Iterator[Lesson]:
    """Yield the examples of documents, each ended by the end token; long documents give several.

    An example starts with the last token of the one before, so that every token but a document's
    first is scored once. A document of one token gives none.

    Args:
        texts: the documents.
        tokenizer: the model's.
        length: the most tokens of an example.
    """
    end = tokenizer.end_id
    for row, ids in enumerate(tokenizer.encode(texts).ids):
        if end is not None and (not len(ids) or ids[-1] != end):
            ids = np.append(ids, np.int32(end))
        for start in range(0, len(ids) - 1, length - 1):
            piece = ids[start : start + length]
            yield Lesson(row, piece, np.append(piece[1:], np.int32(UNSCORED)))


def of_conversations(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    length: int,
    name_of: Callable[[int], str] = "row {}".format,
) -> Iterator[Lesson]:
    """Yield conversations as the chat template writes them; only the assistant's words are scored.

    Args:
        conversations: the messages of each; those after the assistant's last are left out.
        template: the model's.
        tokenizer: the model's.
        length: the most tokens of an example; the rest is truncated.
        name_of: row number -> the name of the conversation in messages.

    Raises:
        UserError: a conversation without an answer, or a template in whose text the answer cannot
            be located.
    """
    for first in range(0, len(conversations), CHUNK):
        places_of = [name_of(row) for row in range(first, min(first + CHUNK, len(conversations)))]
        texts, answers = _written(conversations[first : first + CHUNK], template, places_of)
        located = tokenizer.locate(texts)
        for row, ((ids, places), spans) in enumerate(zip(located, answers, strict=True), first):
            scored = np.zeros(len(ids), bool)
            for start, stop in spans:  # a token that begins in the prompt is the prompt's
                scored |= (places[:, 0] >= start) & (places[:, 1] <= stop)
            targets = np.full(len(ids), UNSCORED, np.int32)
            targets[:-1] = np.where(scored[1:], ids[1:], UNSCORED)
            # The last token that fits has no next token to be scored.
            targets[length - 1 :] = UNSCORED
            yield Lesson(row, ids[:length], targets[:length], max(len(ids) - length, 0))


def _written(
    conversations: Sequence[Conversation], template: ChatTemplate, places: Sequence[str]
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Return each conversation's text, and the start and end of the assistant's answers in it.

    An answer is what the template adds to the conversation before it when asked to continue. Some
    templates change an answer once more messages follow: such an answer is not scored.
    """
    heard = [heard_of(one, where) for one, where in zip(conversations, places, strict=True)]
    texts = template.render(heard)
    turns = [
        (number, turn)
        for number, one in enumerate(heard)
        for turn, message in enumerate(one)
        if turn and message["role"] == ASSISTANT
    ]
    asked = template.render([heard[n][:t] for n, t in turns], add_generation_prompt=True)
    answered = template.render([heard[n][: t + 1] for n, t in turns])
    spans: list[list[tuple[int, int]]] = [[] for _ in heard]
    for (number, _), before, after in zip(turns, asked, answered, strict=True):
        if after.startswith(before) and texts[number].startswith(after):
            # The line end after an answer is the template's, not the assistant's.
            spans[number].append((len(before), len(after.rstrip())))
    for where, answers in zip(places, spans, strict=True):
        if not answers:
            raise UserError(
                f"{where}: the text from the chat template of '{template.folder}' does not begin "
                "with the text before the answer, so the answer cannot be located in it.",
                "Train on complete texts: set task.text.",
            )
    return texts, spans


def heard_of(conversation: Any, where: str) -> list[Mapping[str, Any]]:
    """Return a conversation up to the assistant's last message.

    Args:
        conversation: a list of messages.
        where: its name in messages.

    Raises:
        UserError: it is not a conversation, or the assistant answers nothing in it.
    """
    messages = list(conversation) if isinstance(conversation, list | tuple) else []
    fine = all(
        isinstance(one, Mapping) and isinstance(one.get("role"), str) and "content" in one
        for one in messages
    )
    if not messages or not fine:
        raise UserError(f"{where} is not a conversation: a list of messages {{role, content}}.")
    while messages and messages[-1]["role"] != ASSISTANT:
        messages.pop()
    if len(messages) < 2:
        raise UserError(
            f"{where}: the conversation has no answer by the assistant.", "Remove the row."
        )
    return messages
