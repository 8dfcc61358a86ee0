"""Conversations of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxft.data.text.answers import Conversation
from jaxft.data.text.chat import ToolList
from jaxft.data.text.template import is_missing
from jaxft.errors import UserError
from jaxft.storage.json_files import parse_json
from jaxft.tasks.causal_lm.section import CausalLmSection
from jaxft.tasks.parts.labels import BadValue, text_of, with_role

TOOLS_HINT = "Tools are a list of JSON schemas of functions, or that list as JSON text."


@dataclass(frozen=True)
class Talk:
    """A row: its conversation, and the tools that the assistant may call."""

    messages: Conversation
    tools: ToolList | None = None


def talk_of(section: CausalLmSection, row: Mapping[str, Any]) -> Talk:
    """Read a row's conversation.

    Args:
        section: it names the columns.
        row: the row.

    Raises:
        BadValue: a cell has another kind of value.
    """
    tools = None if section.tools is None else tools_of(row[section.tools], section.tools)
    if section.messages is not None:
        messages = row[section.messages]
        if isinstance(messages, list | tuple):
            messages = [_without_null_arguments(with_role(one)) for one in messages]
        return Talk(messages, tools)
    assert section.prompt is not None  # the section has one of the two forms
    assert section.answer is not None
    messages = [
        {"role": "user", "content": text_of(row[section.prompt], section.prompt)},
        {"role": "assistant", "content": text_of(row[section.answer], section.answer)},
    ]
    if section.system is not None and not is_missing(row[section.system]):
        system = text_of(row[section.system], section.system, empty=True)
        messages = [{"role": "system", "content": system}, *messages] if system else messages
    return Talk(messages, tools)


def tools_of(cell: Any, column: str) -> ToolList | None:
    """Return the tools in a cell: a list of JSON schemas, or its JSON text; None for no tools.

    Keys that are null are left out: a Parquet file has every row's keys in every row.

    Raises:
        BadValue: it is something else.
    """
    if is_missing(cell):
        return None
    if isinstance(cell, str):
        try:
            cell = parse_json(cell, column)
        except UserError as error:
            raise BadValue(f"has no tools: {error.message.removesuffix('.')}", TOOLS_HINT) from None
    if not isinstance(cell, list | tuple) or not all(isinstance(one, Mapping) for one in cell):
        raise BadValue(f"has no list of tools in {column}", TOOLS_HINT)
    return _without_nulls(list(cell)) or None


def _without_null_arguments(message: Any) -> Any:
    """Return a message whose tool calls have no keys that are null."""
    if not isinstance(message, Mapping) or not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": _without_nulls(message["tool_calls"])}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list | tuple) else value
