"""Lengths of training: `3 epochs`, `10%`, `500` steps; and the steps that they come to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

Unit = Literal["steps", "epochs", "percent"]

_FORMS = "write a number of steps (500), '3 epochs' or '10%'"
PATTERN = r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*(steps?|epochs?|%)?\s*$"


@dataclass(frozen=True)
class Duration:
    """A length of training: a whole number of steps, epochs, or a percent of all steps."""

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"a duration cannot be negative; {_FORMS}")
        if self.unit == "percent" and self.value > 100:
            raise ValueError(f"{self} is more than the whole training")
        if self.unit == "steps" and self.value != int(self.value):
            raise ValueError(f"{self.value} is not a whole number of steps; {_FORMS}")

    def __str__(self) -> str:
        whole = self.value == int(self.value)
        number = str(int(self.value)) if whole else f"{Decimal(repr(self.value)):f}"
        if self.unit == "percent":
            return f"{number}%"
        return f"{number} {self.unit[:-1] if self.value == 1 else self.unit}"

    @classmethod
    def parse(cls, written: Any) -> Duration:
        """A duration from what a config holds: a whole number (steps) or a text.

        Raises:
            ValueError: `written` has none of the three forms.
        """
        if isinstance(written, Duration):
            return written
        if isinstance(written, int) and not isinstance(written, bool):
            return cls(written, "steps")
        match = re.match(PATTERN, written) if isinstance(written, str) else None
        if not match:
            raise ValueError(f"{written!r} is not a duration; {_FORMS}")
        unit = match[2] or "steps"
        number = int(match[1]) if match[1].isdecimal() else float(match[1])
        if unit == "%":
            return cls(number, "percent")
        return cls(number, "epochs" if unit.startswith("epoch") else "steps")


ZERO = Duration(0, "steps")


def resolve_steps(duration: Duration, total_steps: int | None, steps_per_epoch: float) -> int:
    """A duration in steps.

    Args:
        duration: what to resolve.
        total_steps: steps in the whole training; None while that is what is being resolved.
        steps_per_epoch: optimizer steps in one pass over the training data.

    Returns:
        The nearest whole number of steps; at least 1 for a duration above zero.

    Raises:
        ValueError: a percent is asked of an unknown total.
    """
    if duration.value == 0:
        return 0
    if duration.unit == "steps":
        return int(duration.value)
    if duration.unit == "epochs":
        return max(1, round(duration.value * steps_per_epoch))
    if total_steps is None:
        raise ValueError(f"{duration} of an unknown number of steps")
    return max(1, round(duration.value / 100 * total_steps))
