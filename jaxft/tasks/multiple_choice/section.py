"""The `task` section of kind `multiple_choice`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, fixed


class MultipleChoiceSection(TaskSection):
    """Multiple choice: the right one of several continuations or answers."""

    kind: Literal["multiple_choice"] = fixed(..., "the kind of task")
    prompt: str = fixed("prompt", "column that holds the text before each choice")
    choices: str | Annotated[list[str], Field(min_length=2)] = fixed(
        "choices", "column that holds a list of choices, or the columns that hold one choice each"
    )
    label: str = fixed(
        "label",
        "column that holds the number of the right choice, counted from 0, or a letter, from A",
    )
