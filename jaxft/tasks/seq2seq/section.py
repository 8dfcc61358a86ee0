"""The `task` section of kind `seq2seq`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, key


class Seq2SeqSection(TaskSection):
    """A text written from another: a translation, a summary, an answer."""

    kind: Literal["seq2seq"] = key(..., "the kind of task", resume="fixed")
    source: str = key("source", "column that holds the text that is read", resume="fixed")
    target: str = key("target", "column that holds the text that is written", resume="fixed")
    prefix: str = key(
        "", "what every source is put behind (`translate English to German: `)", resume="fixed"
    )
    max_target_length: Annotated[int, Field(ge=2)] | None = key(
        None,
        "most tokens of a target, its end included; a longer one is an error; null has no limit",
        resume="fixed",
    )
