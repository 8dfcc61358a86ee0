"""The line of the model card that each task has: its names on the hub, and code that uses it."""

from __future__ import annotations

from dataclasses import dataclass

READ_TEXT = 'inputs = tokenizer("Your text.", truncation=True, return_tensors="pt")'
READ_IMAGE = 'inputs = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")'
APPLY = "outputs = model(**inputs)"
GENERATE = "generated = model.generate(**inputs)"
WRITE = "print(tokenizer.decode(generated[0], skip_special_tokens=True))"


@dataclass(frozen=True)
class Card:
    """A task's line of the model card.

    Args:
        pipeline: the hub's name of the task (`pipeline_tag`).
        auto_class: the class that loads an export.
        lines: lines of Python that read one input and compute the outputs, with the names
            `tokenizer`, `processor` and `model`.
        library: the one that has the class.
    """

    pipeline: str
    auto_class: str
    lines: tuple[str, ...] = ()
    library: str = "transformers"
