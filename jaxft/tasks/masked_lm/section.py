"""The `task` section of kind `masked_lm`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import TaskSection, key


class MaskedLmSection(TaskSection):
    """Hidden tokens of a text, told from what stands around them."""

    kind: Literal["masked_lm"] = key(..., "the kind of task", resume="fixed")
    text: str = key("text", "column that holds the text", resume="fixed")
    mask: float = key(
        0.15,
        "share of a text's tokens to be told in training, drawn anew in each epoch: 80% of them "
        "become the mask token, 10% any token, 10% stay",
        resume="fixed",
        gt=0,
        lt=1,
    )
    whole_words: bool = key(False, "choose words, each with all of its tokens", resume="fixed")
    scored_at_once: int = key(
        1,
        "tokens of a text that are hidden at a time where it is scored: a text takes as many "
        "turns as it has tokens, divided by this",
        resume="fixed",
        ge=1,
    )
