"""Reading a config: YAML and `key.sub=value`, checked key by key against the schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jaxft.config.errors import as_user_error, item_type, section_in, sections_in, tag_of, type_name
from jaxft.config.schema import Config
from jaxft.config.yaml import Origin, read_yaml, to_yaml
from jaxft.durations import Duration, resolve_steps
from jaxft.errors import UserError
from jaxft.numbers import size
from jaxft.storage.buckets import fetched

__all__ = [
    "Config",
    "Duration",
    "Key",
    "changed_keys",
    "check_resume",
    "describe_keys",
    "load_config",
    "override_config",
    "parse_config",
    "read_yaml",
    "resolve_steps",
    "schema_text",
    "to_yaml",
]


MOST_BYTES = 1 << 20  # of a config


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply `key.sub=value` overrides, and check it.

    Args:
        path: a YAML file, local or in a bucket.
        overrides: `key.sub=value`, later ones win; the value is read as YAML, a list item is
            selected by its number (`groups.0.lr_mult=3`).

    Raises:
        UserError: the file cannot be read, or a key or value is wrong.
    """
    try:
        with fetched(path).open("rb") as file:
            written = file.read(MOST_BYTES + 1)
        if len(written) > MOST_BYTES:
            raise UserError(f"{path} is larger than {size(MOST_BYTES)}: it is no config.")
        text = written.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no config file '{path}'.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.", "A config is a YAML file.") from None
    except OSError as error:
        raise UserError(f"Cannot read the config '{path}': {error.strerror}.") from None
    values, lines = read_yaml(text, str(path))
    origin = Origin(str(path), lines)
    for override in overrides:
        _override(values, override, origin)
    return _check(values, origin)


def parse_config(written: Mapping[str, Any], where: str = "config") -> Config:
    """Check a config in a nested mapping, such as one from `Config.dump`.

    Raises:
        UserError: a key or value is wrong; the message begins with `where`.
    """
    return _check(dict(written), Origin(where, {}))


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Apply `key.sub=value` overrides to a config, checked as in `load_config`.

    Raises:
        UserError: a key or value is wrong.
    """
    written = config.model_dump(mode="json", exclude_unset=True)
    origin = Origin("config", {})
    for override in overrides:
        _override(written, override, origin)
    return _check(written, origin)


def _check(written: dict[str, Any], origin: Origin) -> Config:
    try:
        return Config.model_validate(written)
    except ValidationError as error:
        raise as_user_error(error, Config, written, origin) from None


def _override(written: dict[str, Any], override: str, origin: Origin) -> None:
    """Set one `key.sub=value` in `written`."""
    name, equals, value = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise UserError(
            f"'{override}' is not of the form KEY=VALUE.", "Write for example optimizer.lr=3e-5."
        )
    source = f"'{override}' on the command line"
    here: Any = written
    for depth, part in enumerate(parts):
        name_here = ".".join(parts[:depth])
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise UserError(
                    f"{source}: '{name_here}' has items 0 to {len(here) - 1}, not '{part}'."
                    if here
                    else f"{source}: '{name_here}' has no items."
                )
            step: Any = int(part)
        elif isinstance(here, dict):
            step = part
        else:
            raise UserError(f"{source}: '{name_here}' is a value, so it has no key '{part}'.")
        if depth == len(parts) - 1:
            here[step] = read_yaml(value, source, whole=False)[0]
            origin.override(tuple(parts), source)
            return
        if isinstance(here, dict) and here.get(step) is None:
            here[step] = {}
        here = here[step]


@dataclass(frozen=True)
class Key:
    """A config key: its dotted name, type, default, unit, meaning, and resume rule."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str
    resume: str


def describe_keys() -> list[Key]:
    """List every config key in order; keys of list items are named `groups[].name`."""
    return list(_keys_of(Config, ""))


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


def _keys_of_kinds(kinds: Sequence[type[BaseModel]], prefix: str) -> Iterator[Key]:
    """Yield their `kind` once, then each one's own keys, with the kind after the meaning."""
    named = [next(_keys_of(kind, prefix)) for kind in kinds]  # the kind is each one's first key
    yield replace(named[0], type=", ".join(key.type for key in named))
    for kind in kinds:
        for key in _keys_of(kind, prefix):
            if key.name != named[0].name:
                yield replace(key, meaning=f"{key.meaning} ({tag_of(kind)})")


def _describe(name: str, field: FieldInfo) -> Key:
    extra = _extra(field)
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


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def changed_keys(old: Config, new: Config) -> list[str]:
    """Return the dotted names of the keys whose values differ."""
    return [name for name, _ in _changes(old, new, "")]


def check_resume(old: Config, new: Config) -> None:
    """Raise a UserError if a resumed run's config changes what its state depends on.

    Raises:
        UserError: names the keys that may not change, with both values.
    """
    fixed = [name for name, field in _changes(old, new, "") if _extra(field)["resume"] == "fixed"]
    if fixed:
        pairs = [f"{name} ({_value(old, name)} -> {_value(new, name)})" for name in fixed]
        raise UserError(
            f"A run cannot be resumed with a different {', '.join(pairs)}.",
            "Restore the old value, or train under another run.name.",
        )


def _changes(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and field of every key that differs."""
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        dotted = prefix + name
        if isinstance(before, BaseModel) and type(before) is type(after):
            yield from _changes(before, after, f"{dotted}.")
        elif _items_alike(before, after):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from _changes(one, other, f"{dotted}.{index}.")
        elif before != after:
            yield dotted, field


def _items_alike(before: Any, after: Any) -> bool:
    """Return whether both are lists of sections of the same length."""
    both = isinstance(before, list) and isinstance(after, list) and len(before) == len(after)
    return both and bool(before) and all(isinstance(item, BaseModel) for item in before)


def _value(config: Config, dotted: str) -> str:
    here: Any = config.dump()
    for part in dotted.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    return json.dumps(here) if not isinstance(here, str) else here


def schema_text() -> str:
    """Return the JSON schema of a config, for editors and for `docs/schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
    return json.dumps(schema, indent=2) + "\n"
