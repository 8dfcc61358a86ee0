"""The `task` section of kind `seq2seq`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, fixed


class Seq2SeqSection(TaskSection):
    """Sequence-to-sequence learning: a text generated from another, such as a translation."""

    kind: Literal["seq2seq"] = fixed(..., "the kind of task")
    source: str = fixed("source", "column that holds the source text")
    target: str = fixed("target", "column that holds the target text")
    prefix: str = fixed("", "prefix of every source, such as `translate English to German: `")
    max_target_length: Annotated[int, Field(ge=2)] | None = fixed(
        None,
        "most tokens of a target, with its end token; a longer one is an error; null sets no limit",
    )
