"""Multiple choice: the right one of several continuations or answers.

Prompt and choice are read together, each choice by itself; a softmax over the scores of a row's
choices gives their probabilities. R rows of a batch, S examples a row, K choices an example.

Source: Devlin et al. (2018), https://arxiv.org/abs/1810.04805, section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.tasks.multiple_choice.choices import Choices, number_choices, read_choices, read_label
from jaxft.tasks.multiple_choice.section import MultipleChoiceSection as Section
from jaxft.tasks.parts.card import APPLY, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Sum, Sums, Task
from jaxft.tasks.parts.labels import read_rows
from jaxft.tasks.parts.metric import loss_and

HIDDEN = -1e9  # the score of a choice that an example lacks
Rows = list[tuple[str, list[str]]]


class BoundMultipleChoice(BoundTask["MultipleChoice", Choices]):
    """`MultipleChoice` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        read_choices(row, self.task.section)
        read_label(row, self.task.section)

    def examples(self, source: Source, *, labelled: bool = True) -> Choices:
        tokens = self.tools.encoded_by_row(
            self._encode,
            source,
            kind="choices by row",
            columns=self.task.input_columns,
        )
        right = None
        if labelled:
            parse = partial(read_label, section=self.task.section)
            right = np.array(read_rows(source, self.task.columns, parse), np.int32)
        return Choices(tokens, number_choices(self._rows(source)), right)

    def _rows(self, source: Source) -> Rows:
        parse = partial(read_choices, section=self.task.section)
        return read_rows(source, self.task.input_columns, parse)

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every prompt with each choice; the metadata are counts and truncated tokens."""
        rows = self._rows(source)
        prompts = [prompt for prompt, choices in rows for _ in choices]
        texts = [choice for _, choices in rows for choice in choices]
        encoded = self.tools.tokenizer.encode(prompts, texts, max_length=self.tools.max_length)
        pairs = zip(encoded.ids, encoded.type_ids, strict=True)
        examples = [{"input_ids": ids, "token_type_ids": types} for ids, types in pairs]
        of_rows = [number for number, (_, choices) in enumerate(rows) for _ in choices]
        return examples, {"counts": encoded.counts, "cut": encoded.cut, "rows": of_rows}

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        losses = _losses(_scores(outputs, batch), batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        hits = jnp.argmax(_scores(outputs, batch), axis=-1) == batch["right"]
        return {"accuracy": (jnp.sum(hits * batch["weights"]), jnp.sum(batch["weights"]))}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return the `probabilities` of the choices `[R, S, K]` and, with labels, the `loss`."""
        scores = _scores(outputs, batch)
        shares = {"probabilities": jax.nn.softmax(scores, axis=-1)}
        return shares | ({"loss": _losses(scores, batch)} if "right" in batch else {})

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Choices
    ) -> Iterator[dict[str, Any]]:
        """Yield a line for each row, with the right choice and the chosen one as texts."""
        for number, (prompt, choices) in enumerate(self._rows(source)):
            shares = outcomes["probabilities"][number, : len(choices)]
            chosen, rounded = int(np.argmax(shares)), [round(float(one), 6) for one in shares]
            if examples.right is None:
                yield {
                    "prompt": prompt,
                    "choice": choices[chosen],
                    "number": chosen,
                    "probabilities": rounded,
                }
                continue
            yield {
                "source": prompt,
                "target": choices[int(examples.right[number])],
                "written": choices[chosen],
                "loss": float(outcomes["loss"][number]),
                "probabilities": rounded,
            }

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Turn each input, a prompt and its choices between tabs, into a row.

        Raises:
            UserError: an input has fewer than two choices, or not as many as there are columns.
        """
        section = self.task.section
        for number, text in enumerate(inputs, start=1):
            prompt, *choices = text.split("\t")
            wanted = None if isinstance(section.choices, str) else len(section.choices)
            if len(choices) < 2 or wanted not in (None, len(choices)):
                asked = "at least two" if wanted is None else wanted
                raise UserError(
                    f"line {number}: this run reads a prompt with {asked} choices, and the line "
                    f"has {len(choices)}.",
                    "Put a tab after the prompt and between choices.",
                )
            if isinstance(section.choices, str):
                yield {section.prompt: prompt, section.choices: choices}
            else:
                yield {section.prompt: prompt, **dict(zip(section.choices, choices, strict=True))}


def _scores(outputs: Outputs, batch: Batch) -> jax.Array:
    """Return the score of each choice: `[R, S, K]` float32."""
    scores = outputs["logits"][..., 0].astype(jnp.float32)  # [R, S K]
    return jnp.where(batch["present"] > 0, scores.reshape(batch["present"].shape), HIDDEN)


def _losses(scores: jax.Array, batch: Batch) -> jax.Array:
    """Return the cross-entropy of each example's right choice: `[R, S]`."""
    chosen = jnp.take_along_axis(scores, batch["right"][..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - chosen


class MultipleChoice(Task):
    """Multiple choice."""

    section: Section

    bound = BoundMultipleChoice
    card = Card(
        "multiple-choice",
        "AutoModelForMultipleChoice",
        (
            'prompt, choices = "Your prompt.", ["One choice.", "Another."]',
            "inputs = tokenizer([prompt] * len(choices), choices, truncation=True, padding=True, "
            'return_tensors="pt")',
            "inputs = {name: value[None] for name, value in inputs.items()}",
            APPLY,
            "print(outputs.logits.softmax(-1))",
        ),
    )
    metrics = loss_and("accuracy")
    primary = "accuracy"
    view = "texts"
    packs = True

    @property
    def input_columns(self) -> tuple[str, ...]:
        own = self.section
        return (own.prompt, *([own.choices] if isinstance(own.choices, str) else own.choices))

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.input_columns, self.section.label)


make = MultipleChoice
