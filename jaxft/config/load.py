"""Reading a config: YAML and `key.sub=value`, checked key by key against the schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jaxft.bounds import MOST_CONFIG_BYTES
from jaxft.config.errors import as_user_error
from jaxft.config.keys import Key, describe_keys, extra_of
from jaxft.config.schema import Config
from jaxft.config.yaml import Origin, read_yaml, to_yaml
from jaxft.durations import Duration, resolve_steps
from jaxft.errors import NEAR, UserError, nearest
from jaxft.numbers import LARGEST_FLOAT32, size
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
            written = file.read(MOST_CONFIG_BYTES + 1)
        if len(written) > MOST_CONFIG_BYTES:
            raise UserError(f"{path} is larger than {size(MOST_CONFIG_BYTES)}: it is no config.")
        text = written.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no config file '{path}'.", _near_config(path)) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.", "A config is a YAML file.") from None
    except OSError as error:
        raise UserError(f"Cannot read the config '{path}': {error.strerror}.") from None
    values, lines = read_yaml(text, str(path))
    origin = Origin(str(path), lines)
    for override in overrides:
        _override(values, override, origin)
    return _check(values, origin)


def require_config(config: object, of: str) -> None:
    """Raise a UserError unless what a public function was given is a config, by its name `of`."""
    if not isinstance(config, Config):
        raise UserError(
            f"{of}: the config is a {type(config).__name__}.",
            "Pass jaxft.load_config(PATH), or jaxft.parse_config(KEYS) of a dict.",
        )


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
        config = Config.model_validate(written)
    except ValidationError as error:
        raise as_user_error(error, Config, written, origin) from None
    _check_size(config.model_dump(), (), origin)
    return config


def _check_size(value: Any, path: tuple[str, ...], origin: Origin) -> None:
    """Raise a UserError for a number that float32, which training computes with, does not hold."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_size(inner, (*path, str(key)), origin)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_size(inner, (*path, str(index)), origin)
    elif isinstance(value, int | float) and abs(value) > LARGEST_FLOAT32:
        name, most = ".".join(path), f"{LARGEST_FLOAT32:.2g}"
        raise UserError(
            f"{origin.of(path)}: '{name}' must be {most} or less, not {str(value)[:20]}."
        )


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
            if not part.isdecimal() or int(part) >= len(here):
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


def _near_config(path: str | os.PathLike[str]) -> str:
    """Return a hint with the config beside a path that has nearly its name; empty if none."""
    wanted = Path(path)
    if not wanted.parent.is_dir():
        return ""
    files = {one.stem: one for one in wanted.parent.iterdir() if one.suffix in (".yaml", ".yml")}
    close = nearest(wanted.stem, files, cutoff=NEAR)
    return f"Did you mean '{files[close[0]]}'?" if close else ""


def changed_keys(old: Config, new: Config) -> list[str]:
    """Return the dotted names of the keys whose values differ."""
    return [name for name, _ in _changes(old, new, "")]


def changed_values(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Return the old and the new value, as JSON has them, of each key whose values differ."""
    return {name: (_dumped(old, name), _dumped(new, name)) for name in changed_keys(old, new)}


def check_resume(old: Config, new: Config) -> None:
    """Raise a UserError if a resumed run's config changes what its state depends on.

    Raises:
        UserError: names the keys that may not change, with both values.
    """
    fixed = [name for name, field in _changes(old, new, "") if extra_of(field)["resume"] == "fixed"]
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


def _dumped(config: Config, dotted: str) -> Any:
    here: Any = config.dump()
    for part in dotted.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    return here


def _value(config: Config, dotted: str) -> str:
    """Format a key's value without what has its default: a list of groups is long otherwise."""
    here: Any = config
    for part in dotted.split("."):
        here = here[int(part)] if isinstance(here, list) else getattr(here, part)
    items = here if isinstance(here, list) else [here]
    if not any(isinstance(item, BaseModel) for item in items):
        value = _dumped(config, dotted)
        return json.dumps(value) if not isinstance(value, str) else value
    short = [
        item.model_dump(mode="json", exclude_defaults=True) if isinstance(item, BaseModel) else item
        for item in items
    ]
    return json.dumps(short if isinstance(here, list) else short[0])


def schema_text() -> str:
    """Return the JSON schema of a config, for editors and for `docs/schema.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
    return json.dumps(schema, indent=2) + "\n"
