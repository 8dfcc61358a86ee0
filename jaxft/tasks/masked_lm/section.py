"""The `task` section of kind `masked_lm`."""

from __future__ import annotations

from typing import Literal

from jaxft.config.fields import TaskSection, fixed


class MaskedLmSection(TaskSection):
    """Masked language modeling: the hidden tokens of a text, predicted from their context."""

    kind: Literal["masked_lm"] = fixed(..., "the kind of task")
    text: str = fixed("text", "column that holds the text")
    mask: float = fixed(
        0.15,
        "share of a text's tokens to predict in training, sampled anew in each epoch: 80% of them "
        "become the mask token, 10% a random token, 10% stay",
        gt=0,
        lt=1,
    )
    whole_words: bool = fixed(False, "mask whole words, with all of their tokens")
    scored_at_once: int = fixed(
        1,
        "tokens of a text hidden at a time in scoring, which takes as many passes as the text has "
        "tokens, divided by this",
        ge=1,
    )
