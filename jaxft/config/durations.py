"""Config keys that hold a length of training: `3 epochs`, `10%`, `500`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, PlainSerializer, PlainValidator, WithJsonSchema

from jaxft.durations import PATTERN, Duration


def _above_zero(duration: Duration) -> Duration:
    if duration.value == 0:
        raise ValueError("it must be more than zero")
    return duration


DurationKey = Annotated[
    Duration,
    PlainValidator(Duration.parse),
    PlainSerializer(str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": PATTERN},
            ]
        }
    ),
]
"""A config key that holds a duration."""

LengthKey = Annotated[DurationKey, AfterValidator(_above_zero)]
"""A config key that holds a duration above zero."""
