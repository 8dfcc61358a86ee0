"""The `task` section of kind `token_classification`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jaxft.config.fields import TaskSection, key


class TokenClassificationSection(TaskSection):
    """Entities in a text, tagged word by word."""

    kind: Literal["token_classification"] = key(..., "the kind of task", resume="fixed")
    tokens: str = key("tokens", "column that holds the words, a list", resume="fixed")
    tags: str = key(
        "tags", "column that holds their tags, a list: O, B-TYPE, I-TYPE", resume="fixed"
    )
    labels: Annotated[list[str], Field(min_length=2)] | None = key(
        None, "tags in order of id; null takes those of the data", resume="fixed"
    )
    scheme: Literal["iob2", "iob1"] = key(
        "iob2", "whether every entity begins with B- (iob2), or with I- too (iob1)", resume="fixed"
    )
