"""The `task` section of kind `vision_language`."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from jaxft.config.fields import TaskSection, fixed

INSTRUCTION = "Describe this image."


class VisionLanguageSection(TaskSection):
    """Texts about an image: captions, answers to questions, or conversations."""

    kind: Literal["vision_language"] = fixed(..., "the kind of task")
    image: str = fixed("image", "column that holds the image, or the path to its file")
    text: str | None = fixed(
        None, "column that holds a caption; 'text' where no other columns of text are named"
    )
    instruction: str = fixed(INSTRUCTION, "what is asked of every image that has a caption")
    prompt: str | None = fixed(None, "column that holds a question about the image")
    answer: str | None = fixed(None, "column that holds its answer")
    messages: str | None = fixed(
        None,
        "column that holds a conversation: a list of {role, content}, the content a text or a "
        "list of parts, one of which is {type: image}; or of {from, value}, one with <image>",
    )
    train_on: Literal["all", "last"] = fixed(
        "all", "the answers of a conversation that the loss scores"
    )
    grid: int = fixed(
        1,
        "tiles that the longer edge of an image is cut into, the whole image behind them; 1 "
        "reads the whole image alone",
        ge=1,
        le=16,
    )

    @property
    def caption(self) -> str | None:
        """Return the column of captions; None where rows have another form."""
        other = self.messages is not None or self.prompt is not None
        return None if other else self.text or "text"

    @model_validator(mode="after")
    def _one_kind_of_rows(self) -> VisionLanguageSection:
        pair = (self.prompt is not None, self.answer is not None)
        kinds = [self.text is not None, self.messages is not None, any(pair)]
        if sum(kinds) > 1 or (any(pair) and not all(pair)):
            raise ValueError("give one of text, messages, or prompt and answer")
        if self.messages is None and self.train_on != "all":
            raise ValueError("train_on belongs to messages: another row has one answer")
        return self
