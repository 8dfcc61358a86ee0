"""Description of every config key: its type, default, meaning, and resume rule."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxft.config.errors import item_type, section_in, sections_in, tag_of, type_name
from jaxft.config.schema import Config
from jaxft.config.tasks import task_sections
from jaxft.durations import Duration
from jaxft.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Key:
    """A config key: its dotted name, type, default, unit, meaning, and resume rule."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str
    resume: str


def describe_keys(below: str | None = None) -> list[Key]:
    """List config keys in order; keys of list items are named `groups[].name`.

    Args:
        below: a section (`optimizer.`), a key (`optimizer.lr`) or a kind of task
            (`task.kind=text_classification`), to list only what belongs to it; None for all.

    Raises:
        UserError: there is no such section, key or kind.
    """
    keys = list(_keys_of(Config, ""))
    if below is None:
        return keys
    name, equals, kind = below.partition("=")
    if equals:
        return _keys_of_task(name, kind)
    name = name.rstrip(".")
    chosen = [key for key in keys if _belongs(key.name, name)]
    if not chosen:
        sections = {key.name.split(".")[0].removesuffix("[]") for key in keys}
        known = [*sections, *(key.name for key in keys)] if "." in name else sections
        raise UserError(
            f"'{name}' is neither a config file nor a section or key of one.",
            did_you_mean(name, known),
        )
    return chosen


def _belongs(key: str, name: str) -> bool:
    """Return whether a key is `name`, or lies in the section or in the list of that name."""
    return key == name or key.startswith((f"{name}.", f"{name}[]"))


def _keys_of_task(name: str, kind: str) -> list[Key]:
    """List the keys of the `task` section of one kind."""
    if name != "task.kind":
        raise UserError(
            f"'{name}={kind}' overrides a key of a config, and no config is named.",
            "Write jaxft config CONFIG KEY=VALUE, or task.kind=KIND for the keys of one task.",
        )
    sections = task_sections()
    if kind not in sections:
        raise UserError(f"There is no task.kind '{kind}'.", did_you_mean(kind, sections))
    return list(_keys_of(sections[kind], "task."))


def _keys_of(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        inner = section_in(field.annotation)
        item = section_in(item_type(field.annotation))
        kinds = sections_in(field.annotation)
        if len(kinds) > 1:
            yield from _keys_of_kinds(kinds, f"{prefix}{name}.")
            continue
        if field.annotation is inner and inner is not None:
            yield from _keys_of(inner, f"{prefix}{name}.")
            continue
        yield _describe(prefix + name, field)
        if item is not None:
            yield from _keys_of(item, f"{prefix}{name}[].")
        if inner is not None:  # a section that may be null
            yield from _keys_of(inner, f"{prefix}{name}.")


def _keys_of_kinds(kinds: Sequence[type[BaseModel]], prefix: str) -> Iterator[Key]:
    """Yield their `kind` once, then each one's own keys, with the kind after the meaning."""
    named = [next(_keys_of(kind, prefix)) for kind in kinds]  # the kind is each one's first key
    yield replace(named[0], type=", ".join(key.type for key in named))
    for kind in kinds:
        for key in _keys_of(kind, prefix):
            if key.name != named[0].name:
                yield replace(key, meaning=f"{key.meaning} ({tag_of(kind)})")


def _describe(name: str, field: FieldInfo) -> Key:
    extra = extra_of(field)
    if field.is_required():
        default = "(required)"
    else:
        value = field.get_default(call_default_factory=True, validated_data={})
        default = str(value) if isinstance(value, Duration) else json.dumps(value)
        default = value if isinstance(value, str) else default
    return Key(
        name=name,
        type=type_name(field.annotation),
        default=default,
        unit=str(extra.get("unit", "")),
        meaning=field.description or "",
        resume=str(extra["resume"]),
    )


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """Return what the schema says of a key beside its type: unit, default, resume rule."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
