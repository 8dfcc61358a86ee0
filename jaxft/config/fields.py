"""The parts of a config schema: sections and keys.

`resume` says whether a key may change when a run is resumed. It is "fixed" if a change would make
the saved state invalid, give another position in the data, or make scores incomparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler

from jaxft.durations import Duration

Resume = Literal["may change", "fixed"]
Checked = TypeVar("Checked", bound=BaseModel)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def fixed(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """Declare a config key that stays as it is when a run is resumed; arguments as `_key` has."""
    return _key(default, meaning, "fixed", unit, limits)


def may_change(default: Any, meaning: str, *, unit: str = "", **limits: Any) -> Any:
    """Declare a config key that may change when a run is resumed; arguments as `_key` has."""
    return _key(default, meaning, "may change", unit, limits)


def _key(default: Any, meaning: str, resume: Resume, unit: str, limits: Mapping[str, Any]) -> Any:
    """Declare a config key.

    Args:
        default: its value where a config leaves it out; `...` if it is required.
        meaning: its help text.
        resume: whether it may change when a run is resumed.
        unit: of a number.
        limits: on its value, as `pydantic.Field` takes them.
    """
    extra: dict[str, Any] = {"resume": resume}
    if unit:
        extra["unit"] = unit
    if isinstance(default, Duration):
        extra["default"] = str(default)  # pydantic's schema would show the dataclass
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def section(kind: type[BaseModel], meaning: str) -> Any:
    """Declare a section whose keys all have defaults, so that it may be omitted."""
    return Field(default_factory=kind, description=meaning)


class Section(BaseModel):
    """A group of keys: no unknown ones, no type conversion, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


def with_defaults(
    written: Any, handler: ModelWrapValidatorHandler[Checked], defaults: Mapping[str, Any]
) -> Checked:
    """Check a section whose other keys choose its defaults, which do not count as written.

    An override of those other keys then takes the defaults with it.

    Args:
        written: the section as a config has it.
        handler: checks it, as a wrapping validator has it.
        defaults: key -> value where `written` has none.
    """
    if not isinstance(written, dict):
        return handler(written)
    section = handler({**defaults, **written})
    section.model_fields_set.intersection_update(written)
    return section


class TaskSection(Section):
    """The `task` section: each kind of task has a subclass in its own folder."""

    kind: str
