"""The parts of a config schema: sections and keys.

`resume` says whether a key may change when a run is resumed. It is "fixed" if a change would make
the saved state invalid, give another position in the data, or make scores incomparable.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxft.durations import Duration

Resume = Literal["may change", "fixed"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def key(default: Any, meaning: str, *, resume: Resume, unit: str = "", **limits: Any) -> Any:
    """Declare a config key: its default (`...` if it is required), meaning and unit."""
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


class TaskSection(Section):
    """The `task` section: each kind of task has a subclass in its own folder."""

    kind: str
