"""A config in the making: the keys of its task and the reason for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Draft:
    """A config in the making: keys and the reasons for them.

    Attributes:
        task: keys of the `task` section, `kind` first.
        why: key of the config -> the reason.
        inputs: the columns whose texts a model will read.
        label: the column of the classes, if there is one.
    """

    task: dict[str, Any]
    why: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    label: str | None = None

    def set(self, key: str, value: Any, why: str) -> None:
        """Set a key of the task with the reason for its value."""
        self.task[key] = value
        self.why[f"task.{key}"] = why
