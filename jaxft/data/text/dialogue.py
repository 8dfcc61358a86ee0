"""Training examples of a causal model: tokens, and the targets that are scored.

Every token of a document is scored; of a conversation only the assistant's messages are, with their
end tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxft.data.text.answers import (
    Conversation,
    Scoring,
    WrittenConversation,
    check_conversation,
    write_conversations,
)
from jaxft.data.text.chat import ChatTemplate, ToolList
from jaxft.data.text.tokenizer import CHUNK, Tokenizer
from jaxft.errors import UserError

UNSCORED = -1  # the target of a position whose next token is not scored
EVERY_ANSWER = Scoring()


@dataclass(frozen=True)
class Lesson:
    """One example.

    Args:
        row: the number of its text or conversation.
        ids: [tokens] int32.
        targets: the next token, [tokens] int32; -1 where none is scored.
        cut: tokens truncated at the end of the text.
        rewritten: it ends with an answer that the chat template writes otherwise once more
            messages follow, the only one that is scored.
        unlocated: answers of the conversation that are not located in its text, nor scored.
        last_ids: the last token of each answer, those that are cut included.
    """

    row: int
    ids: np.ndarray
    targets: np.ndarray
    cut: int = 0
    rewritten: bool = False
    unlocated: int = 0
    last_ids: tuple[int, ...] = ()


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
    *,
    tools: Sequence[ToolList | None] | None = None,
    scoring: Scoring = EVERY_ANSWER,
) -> Iterator[Lesson]:
    """Yield conversations as the chat template writes them; only the assistant's words are scored.

    An answer that the template writes otherwise once more messages follow is an example of its
    own, which ends with it; then comes the whole conversation.

    Args:
        conversations: the messages of each; those after the assistant's last are left out.
        template: the model's.
        tokenizer: the model's.
        length: the most tokens of an example; the rest is truncated.
        name_of: row number -> the name of the conversation in messages.
        tools: of each conversation those that the assistant may call.
        scoring: the settings of what is scored.

    Raises:
        UserError: a conversation without an answer, or a template in whose texts no answer can be
            located.
    """
    tools = tools or [None] * len(conversations)
    located_any = not conversations
    for first in range(0, len(conversations), CHUNK):
        chunk = slice(first, first + CHUNK)
        heard = [
            check_conversation(one, name_of(row))
            for row, one in enumerate(conversations[chunk], first)
        ]
        written = write_conversations(heard, tools[chunk], template, scoring)
        located = tokenizer.locate([one.text for one in written])
        for one, (ids, places) in zip(written, located, strict=True):
            located_any |= bool(one.spans)
            yield lesson_of(one, first + one.number, ids, places, length, scoring.end_ids)
    if not located_any:
        raise UserError(
            f"{name_of(0)}: the text from the chat template of '{template.folder}' does not begin "
            "with the text before the answer, so the answer cannot be located in it.",
            "Train on complete texts: set task.text.",
        )


def lesson_of(
    written: WrittenConversation,
    row: int,
    ids: np.ndarray,
    places: np.ndarray,
    length: int,
    end_ids: frozenset[int],
) -> Lesson:
    """Return a conversation's example.

    Args:
        written: the conversation.
        row: its number.
        ids: its tokens, [tokens] int32.
        places: start and end of each in the text, [tokens, 2].
        length: the most tokens of an example.
        end_ids: where the one after an answer is one of these, as GLM's is, it is scored too.
    """
    scored, last_ids = np.zeros(len(ids), bool), []
    for start, stop in written.spans:  # a token that begins in the prompt is the prompt's
        own = np.flatnonzero((places[:, 0] >= start) & (places[:, 1] <= stop))
        if not len(own):
            continue
        following = ids[own[-1] : own[-1] + 2].tolist()
        if following[0] not in end_ids and following[-1] in end_ids:
            own = np.append(own, own[-1] + 1)
        scored[own] = True
        last_ids.append(following[-1] if following[-1] in end_ids else following[0])
    targets = np.full(len(ids), UNSCORED, np.int32)
    targets[:-1] = np.where(scored[1:], ids[1:], UNSCORED)
    # The last token that fits has no next token to be scored.
    targets[length - 1 :] = UNSCORED
    return Lesson(
        row,
        ids[:length],
        targets[:length],
        max(len(ids) - length, 0),
        rewritten=written.rewritten,
        unlocated=written.unlocated,
        last_ids=tuple(last_ids),
    )
