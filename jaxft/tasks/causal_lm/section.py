"""The `task` section of kind `causal_lm`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import TaskSection, fixed


class CausalLmSection(TaskSection):
    """Causal language modeling: the next token of documents, or of answers in conversations."""

    kind: Literal["causal_lm"] = fixed(..., "the kind of task")
    text: str | None = fixed(None, "column that holds a document")
    messages: str | None = fixed(
        None, "column that holds a conversation: a list of {role, content} or of {from, value}"
    )
    prompt: str | None = fixed(None, "column that holds the prompt")
    answer: str | None = fixed(None, "column that holds the answer")
    system: str | None = fixed(None, "column that holds the system message before a prompt")
    tools: str | None = fixed(
        None,
        "column that holds the tools of a conversation: a list of JSON schemas, or its JSON text",
    )
    train_on: Literal["all", "last"] = fixed(
        "all", "the answers of a conversation that the loss scores"
    )
    ignore_empty_think: bool = fixed(
        False, "leave an empty <think></think> at the start of an answer out of the loss"
    )

    @model_validator(mode="after")
    def _one_kind_of_rows(self) -> CausalLmSection:
        pair = (self.prompt is not None, self.answer is not None)
        kinds = [self.text is not None, self.messages is not None, any(pair)]
        if sum(kinds) != 1 or (any(pair) and not all(pair)):
            raise ValueError("give one of text, messages, or prompt and answer")
        if self.system is not None and not all(pair):
            raise ValueError("system belongs to prompt and answer: messages have a role system")
        of_chat = self.tools is not None or self.train_on != "all" or self.ignore_empty_think
        if self.text is not None and of_chat:
            raise ValueError("tools, train_on and ignore_empty_think belong to conversations")
        return self
