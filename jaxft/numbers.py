"""Number formats for people, the same in the terminal and in the report."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

LARGEST_FLOAT32 = 3.4028234e38


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Return whether a parsed value is a number that a float holds, and neither true nor false."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # of NaN and infinity this is false


def score(value: float) -> str:
    """Format a loss or a metric: `0.8312`, `12.41`."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def rate(value: float) -> str:
    """Format a learning rate with at most three digits: `5e-5`, `3.05e-4`, `0`."""
    if value == 0:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def count(value: float, unit: str = "") -> str:
    """Format a count: `4,992`, `22.7 M`, and with a unit `19.6 GFLOP`."""
    scaled, prefixes = float(value), ["", "k", "M", "G", "T", "P"]
    if abs(scaled) >= 10_000:
        while abs(scaled) >= 999.5 and len(prefixes) > 1:
            scaled /= 1000
            prefixes.pop(0)
    whole = prefixes[0] == "" or abs(scaled) >= 99.95
    text = f"{scaled:,.0f}" if whole else f"{scaled:.1f}"
    return f"{text} {prefixes[0]}{unit}".rstrip()


def counted(number: int, thing: str) -> str:
    """Format so many of a thing: `1 step`, `4,992 steps`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(value: float) -> str:
    """Format a number of bytes: `512 B`, `85.2 MB`."""
    return count(value, "B")


def share(value: float) -> str:
    """Format a fraction as a percentage: `42.1%`, and `0.02%` if it is small."""
    return f"{100 * value:.2f}%" if 0 < value < 0.01 else f"{100 * value:.1f}%"


def span(seconds: float) -> str:
    """Format a duration: `0:08`, `4:12`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
