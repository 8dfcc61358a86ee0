"""The `task` section: one kind a task, told apart by `kind`.

What tells classes or a number of an example is in `config_classes.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxft.config_classes import ImageClassification, TextClassification
from jaxft.config_fields import Section, key


class TokenClassification(Section):
    """Entities in a text, tagged word by word."""

    kind: Literal["token_classification"] = key(..., "what is learned", resume="fixed")
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


class CausalLm(Section):
    """The next token of documents, or of the answers in conversations."""

    kind: Literal["causal_lm"] = key(..., "what is learned", resume="fixed")
    text: str | None = key(None, "column that holds a document", resume="fixed")
    messages: str | None = key(
        None, "column that holds a conversation: a list of {role, content}", resume="fixed"
    )
    prompt: str | None = key(None, "column that holds what is asked", resume="fixed")
    answer: str | None = key(None, "column that holds what is answered", resume="fixed")

    @model_validator(mode="after")
    def _one_kind_of_rows(self) -> CausalLm:
        pair = (self.prompt is not None, self.answer is not None)
        kinds = [self.text is not None, self.messages is not None, any(pair)]
        if sum(kinds) != 1 or (any(pair) and not all(pair)):
            raise ValueError("it names text, or messages, or prompt and answer")
        return self


class Contrastive(Section):
    """Which text belongs to which image, among all of a batch."""

    kind: Literal["contrastive"] = key(..., "what is learned", resume="fixed")
    image: str = key(
        "image", "column that holds the image, or the path to its file", resume="fixed"
    )
    text: str = key("text", "column that holds the text", resume="fixed")
    loss: Literal["softmax", "sigmoid"] = key(
        "softmax", "over each row of scores (CLIP), or of each score alone (SigLIP)", resume="fixed"
    )


TaskSection = (
    TextClassification | TokenClassification | CausalLm | ImageClassification | Contrastive
)
