"""The `task` section of kind `seq2seq`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, fixed


class Seq2SeqSection(TaskSection):
    """A text written from another: a translation, a summary, an answer."""

    kind: Literal["seq2seq"] = fixed(..., "the kind of task")
    source: str = fixed("source", "column that holds the text that is read")
    target: str = fixed("target", "column that holds the text that is written")
    prefix: str = fixed("", "what every source is put behind (`translate English to German: `)")
    max_target_length: Annotated[int, Field(ge=2)] | None = fixed(
        None,
        "most tokens of a target, its end included; a longer one is an error; null has no limit",
    )
