"""The `task` section of kind `token_classification`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, fixed


class TokenClassificationSection(TaskSection):
    """Named entities in a text, tagged word by word."""

    kind: Literal["token_classification"] = fixed(..., "the kind of task")
    tokens: str = fixed("tokens", "column that holds the words, a list")
    tags: str = fixed("tags", "column that holds their tags, a list: O, B-TYPE, I-TYPE")
    labels: Annotated[list[str], Field(min_length=2)] | None = fixed(
        None, "tags in order of id; null takes those of the data"
    )
    scheme: Literal["iob2", "iob1"] = fixed(
        "iob2", "whether every entity begins with B- (iob2), or with I- too (iob1)"
    )
