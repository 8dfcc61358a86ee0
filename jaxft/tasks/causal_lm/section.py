"""The `task` section of kind `causal_lm`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import TaskSection, key


class CausalLmSection(TaskSection):
    """The next token of documents, or of the answers in conversations."""

    kind: Literal["causal_lm"] = key(..., "the kind of task", resume="fixed")
    text: str | None = key(None, "column that holds a document", resume="fixed")
    messages: str | None = key(
        None, "column that holds a conversation: a list of {role, content}", resume="fixed"
    )
    prompt: str | None = key(None, "column that holds what is asked", resume="fixed")
    answer: str | None = key(None, "column that holds what is answered", resume="fixed")

    @model_validator(mode="after")
    def _one_kind_of_rows(self) -> CausalLmSection:
        pair = (self.prompt is not None, self.answer is not None)
        kinds = [self.text is not None, self.messages is not None, any(pair)]
        if sum(kinds) != 1 or (any(pair) and not all(pair)):
            raise ValueError("it names text, or messages, or prompt and answer")
        return self
