"""Lengths of training: `3 epochs`, `10%`, `500` steps, `1000 examples`; and their steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Any, Literal

Unit = Literal["steps", "epochs", "examples", "percent"]

_FORMS = "write a number of steps (500), '3 epochs', '10%' or '1000 examples'"
PATTERN = r"^\s*(\d+(?:\.\d*)?|\.\d+)\s*(steps?|epochs?|examples?|%)?\s*$"


@dataclass(frozen=True)
class Duration:
    """A length of training: whole steps or examples, epochs, or a percent of all steps."""

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"a duration cannot be negative; {_FORMS}")
        if self.unit == "percent" and self.value > 100:
            raise ValueError(f"{self} is more than the whole training")
        if self.unit in ("steps", "examples") and self.value != int(self.value):
            raise ValueError(f"{self.value} is not a whole number of {self.unit}; {_FORMS}")

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
            ValueError: `written` has none of the four forms.
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
        for name in ("epochs", "examples"):
            if name.startswith(unit):
                return cls(number, name)
        return cls(number, "steps")


ZERO = Duration(0, "steps")


@dataclass(frozen=True)
class Growth:
    """Growth of the batch at the start of a run, in equal parts: micro-batches.

    Attributes:
        steps: the number of steps with one part, with two, and so on; those after have all.
    """

    steps: tuple[int, ...] = ()

    @property
    def parts(self) -> int:
        """Return the parts of a whole batch."""
        return len(self.steps) + 1

    def parts_at(self, step: int) -> int:
        """Return how many parts the step has that begins after `step` steps."""
        return min(sum(step >= end for end in accumulate(self.steps)) + 1, self.parts)

    def before(self, step: int) -> int:
        """Return how many parts all steps before `step` have had."""
        total = 0
        for count, steps in enumerate(self.steps, 1):
            inside = min(step, steps)
            total, step = total + count * inside, step - inside
        return total + step * self.parts

    def steps_of(self, whole: float) -> float:
        """Return the steps from the start that have as many parts as so many whole batches."""
        rest, done = whole * self.parts, 0.0
        for count, steps in enumerate(self.steps, 1):
            inside = min(rest / count, steps)
            rest, done = rest - count * inside, done + inside
        return done + rest / self.parts


@dataclass(frozen=True)
class Pace:
    """Pace of a run through its examples.

    Attributes:
        steps_per_epoch: steps of whole batches in one pass over the training data.
        examples_per_step: the mean number of examples in one; None where it is not known.
        growth: of the batch.
    """

    steps_per_epoch: float
    examples_per_step: float | None = None
    growth: Growth = Growth()

    def steps(self, duration: Duration) -> float:
        """Return the steps of whole batches in a number of epochs or examples."""
        if duration.unit == "epochs":
            return duration.value * self.steps_per_epoch
        if self.examples_per_step is None:
            raise ValueError(f"{duration} at an unknown number of examples a step")
        return duration.value / self.examples_per_step

    def whole_epochs(self, steps: int) -> int:
        """Return the epochs that a run of so many steps completes.

        Its length is to the nearest step, so half a step may be missing from the last.
        """
        batches = self.growth.before(steps) / self.growth.parts
        return int((batches + 0.5) // self.steps_per_epoch)


def resolve_steps(
    duration: Duration, total_steps: int | None, pace: Pace | float, *, start: bool = False
) -> int:
    """A duration in steps.

    Args:
        duration: what to resolve.
        total_steps: steps in the whole training; None while that is what is being resolved.
        pace: of the run, or the steps in an epoch.
        start: whether the duration counts from the start of the run, where its batch may grow;
            else it is in steps of whole batches.

    Returns:
        The nearest whole number of steps; at least 1 for a duration above zero.

    Raises:
        ValueError: a percent is asked of an unknown total.
    """
    if duration.value == 0:
        return 0
    if duration.unit == "steps":
        return int(duration.value)
    if duration.unit != "percent":
        own = pace if isinstance(pace, Pace) else Pace(pace)
        steps = own.steps(duration)
        return max(1, round(own.growth.steps_of(steps) if start else steps))
    if total_steps is None:
        raise ValueError(f"{duration} of an unknown number of steps")
    return max(1, round(duration.value / 100 * total_steps))
