"""Answers of conversations located in the text that a chat template writes.

An answer is what the template adds to the conversation before it when asked to continue: the
assistant's words with their end token. Some templates write an answer otherwise once more messages
follow (Qwen3's leaves out what was thought); such an answer is located in the text of the
conversation up to it, which is what the model generates from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxft.data.text.chat import ChatTemplate, ToolList
from jaxft.errors import UserError

ASSISTANT = "assistant"
Conversation = Sequence[Mapping[str, Any]]

EMPTY_THINK = re.compile(r"<think>\s*</think>\s*")
THINK = "<think>"


@dataclass(frozen=True)
class Scoring:
    """Settings of what is scored of a conversation.

    Args:
        train_on: `all` answers of a conversation, or the `last`.
        ignore_empty_think: leave `<think></think>` at the start of an answer unscored, as
            ms-swift does by the option of this name.
        end_ids: the tokens at which generation stops.
    """

    train_on: Literal["all", "last"] = "all"
    ignore_empty_think: bool = False
    end_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Exchange:
    """A conversation up to an answer, the answer, and the tools that the assistant may call."""

    asked: Conversation
    answer: str
    tools: ToolList | None = None


@dataclass(frozen=True)
class WrittenConversation:
    """A conversation as text, whole or up to an answer that the template writes otherwise later.

    Attributes:
        number: of the conversation.
        text: what the template writes.
        spans: start and end of each answer in it, in characters.
        rewritten: whether it ends with such an answer, its only one.
        unlocated: how many answers of the conversation are in none of its texts; counted once.
    """

    number: int
    text: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    rewritten: bool = False
    unlocated: int = 0


def write_conversations(
    conversations: Sequence[Conversation],
    tools: Sequence[ToolList | None],
    template: ChatTemplate,
    scoring: Scoring,
) -> list[WrittenConversation]:
    """Write conversations as text, and locate their answers.

    Args:
        conversations: the messages of each; the last is the assistant's.
        tools: those of each that the assistant may call.
        template: the model's.
        scoring: the settings.

    Returns:
        The texts, in the order of the conversations: of each those of its rewritten answers, then
        the whole.
    """
    turns = [
        (number, turn)
        for number, one in enumerate(conversations)
        for turn, message in enumerate(one)
        if turn and message["role"] == ASSISTANT
        if scoring.train_on == "all" or turn == len(one) - 1
    ]
    own_tools = [tools[number] for number, _ in turns]
    before, after = ([conversations[n][: t + add] for n, t in turns] for add in (0, 1))
    asked = template.render(before, own_tools, add_generation_prompt=True)
    answered = template.render(after, own_tools)
    wholes = template.render(conversations, tools)

    spans: list[list[tuple[int, int]]] = [[] for _ in conversations]
    rewritten: list[list[WrittenConversation]] = [[] for _ in conversations]
    unlocated = [0] * len(conversations)
    for (number, _), prompt, text in zip(turns, asked, answered, strict=True):
        if not text.startswith(prompt):
            unlocated[number] += 1
            continue
        span = _span(text, len(prompt), scoring)
        if wholes[number].startswith(text):
            spans[number].append(span)
        else:
            rewritten[number].append(WrittenConversation(number, text, [span], rewritten=True))
    return [
        one
        for number, whole in enumerate(wholes)
        for one in (
            *rewritten[number],
            WrittenConversation(number, whole, spans[number], unlocated=unlocated[number]),
        )
    ]


def _span(text: str, start: int, scoring: Scoring) -> tuple[int, int]:
    """Return where an answer that ends a text starts and ends.

    The line end after an answer is the template's, not the assistant's.
    """
    if scoring.ignore_empty_think:
        opened = text.rfind(THINK, 0, start)  # the prompt may end with it
        for begin in (opened, start):
            empty = EMPTY_THINK.match(text, begin) if begin >= 0 else None
            start = max(start, empty.end()) if empty else start
    return start, len(text.rstrip())


def check_conversation(conversation: Any, where: str) -> list[Mapping[str, Any]]:
    """Return a conversation up to the assistant's last message.

    Args:
        conversation: a list of messages.
        where: its name in messages.

    Raises:
        UserError: it is not a conversation, or the assistant answers nothing in it.
    """
    messages = list(conversation) if isinstance(conversation, list | tuple) else []
    if not messages or not all(map(_is_message, messages)):
        raise UserError(f"{where} is not a conversation: a list of messages {{role, content}}.")
    while messages and messages[-1]["role"] != ASSISTANT:
        messages.pop()
    if len(messages) < 2:
        raise UserError(
            f"{where}: the conversation has no answer by the assistant.", "Remove the row."
        )
    return messages


def _is_message(one: Any) -> bool:
    """Return whether a value is a message; one that calls tools needs no content."""
    return (
        isinstance(one, Mapping)
        and isinstance(one.get("role"), str)
        and ("content" in one or bool(one.get("tool_calls")))
    )
