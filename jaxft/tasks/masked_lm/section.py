"""The `task` section of kind `masked_lm`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import TaskSection, fixed


class MaskedLmSection(TaskSection):
    """Hidden tokens of a text, told from what stands around them."""

    kind: Literal["masked_lm"] = fixed(..., "the kind of task")
    text: str = fixed("text", "column that holds the text")
    mask: float = fixed(
        0.15,
        "share of a text's tokens to be told in training, drawn anew in each epoch: 80% of them "
        "become the mask token, 10% any token, 10% stay",
        gt=0,
        lt=1,
    )
    whole_words: bool = fixed(False, "choose words, each with all of its tokens")
    scored_at_once: int = fixed(
        1,
        "tokens of a text that are hidden at a time where it is scored: a text takes as many "
        "turns as it has tokens, divided by this",
        ge=1,
    )
