"""The next token: of documents, or of the answers in conversations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.open import Source
from jaxft.data.text.chat import ChatTemplate
from jaxft.data.text.dialogue import (
    UNSCORED,
    Conversation,
    Lesson,
    heard_of,
    of_conversations,
    of_documents,
)
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.causal_lm.section import CausalLmSection as Section
from jaxft.tasks.parts.contract import (
    HIGHER,
    LOWER,
    Batch,
    BoundTask,
    Card,
    Metric,
    Outcomes,
    Outputs,
    Sum,
    Sums,
    Task,
)
from jaxft.tasks.parts.labels import read_rows, text_of
from jaxft.tasks.parts.token_examples import TokenExamples, of_segments, row_targets
from jaxft.tasks.parts.tools import Tools

MOST_SAID = 200  # characters of a document that a person is shown
MOST_EXPONENT = 700  # beyond it e to that has no float


def make(section: Section) -> CausalLm:
    """The task as the config's `task` section describes it."""
    return CausalLm(section)


@dataclass(frozen=True)
class Lessons(TokenExamples):
    """Token ids, each with the next token; see `jaxft.tasks.parts.contract.Examples`."""

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"])

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        targets = row_targets(index, row_length, lambda number: self.tokens[number]["targets"])
        return batch | {"targets": targets}


@dataclass(frozen=True)
class CausalLm(Task):
    """The next token: of documents, or of the answers in conversations."""

    section: Section

    kind = "causal_lm"
    head = "causal_lm"
    card = Card("text-generation", "AutoModelForCausalLM")
    primary = "loss"
    packs = True

    @property
    def metrics(self) -> Mapping[str, Metric]:
        found = {"loss": LOWER, "accuracy": HIGHER, "perplexity": LOWER}
        return found if self.section.text is None else {**found, "bits_per_byte": LOWER}

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        return tuple(c for c in (own.text, own.messages, own.prompt, own.answer) if c is not None)

    @property
    def text_columns(self) -> tuple[str, ...]:
        own = self.section
        return tuple(c for c in (own.text, own.messages, own.prompt, own.answer) if c is not None)

    @property
    def plain_text_column(self) -> str:
        return self.section.text or "text"

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundCausalLm:
        return BoundCausalLm(self, tools, label_names)


class BoundCausalLm(BoundTask[CausalLm, Lessons]):
    """`CausalLm` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its text, or its conversation."""
        if self.task.section.text is not None:
            self._document(row)
        else:
            heard_of(self._conversation(row), source.place(number))

    def examples(self, source: Source, *, labelled: bool = True) -> Lessons:
        template = None if self.task.section.text is not None else self.tools.chat_template
        tokens = self.tools.once(
            partial(self._encode, source, self.tools.tokenizer, template, self.tools.max_length),
            kind="next tokens",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            template=template and [template.text, dict(template.tokens)],
            max_length=self.tools.max_length,
            columns=self.task.columns,
        )
        return Lessons(tokens)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, template: ChatTemplate | None, length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every example's tokens; of the whole, counts, rows, and how much of which was cut."""
        size = 0
        if template is None:
            texts = read_rows(source, self.task.columns, self._document)
            lessons = list(of_documents(texts, tokenizer, length))
            taught = {lesson.row for lesson in lessons}
            size = sum(len(texts[row].encode()) for row in taught)
        else:
            asked = read_rows(source, self.task.columns, self._conversation)
            lessons = list(of_conversations(asked, template, tokenizer, length, source.place))
        kept = [lesson for lesson in lessons if (lesson.targets != UNSCORED).any()]
        if not kept:
            raise UserError(
                f"{source.spec}: no row has a token to learn within {length} tokens.",
                "Raise data.max_length: a prompt that fills it leaves no room for the answer.",
            )
        return [{"input_ids": one.ids, "targets": one.targets} for one in kept], {
            "counts": _counts(kept, len(source), tokenizer.unknown_id),
            "cut": {number: one.cut for number, one in enumerate(kept) if one.cut},
            "rows": [one.row for one in kept],
            "bytes": size,
        }

    def _document(self, row: Mapping[str, Any]) -> str:
        """A row's text; one of no letter teaches nothing, and is counted as left out."""
        (column,) = self.task.columns
        return text_of(row[column], column, empty=True)

    def _conversation(self, row: Mapping[str, Any]) -> Conversation:
        """A row's messages."""
        own = self.task.section
        if own.messages is not None:
            return row[own.messages]
        asked, said = (text_of(row[column], column) for column in self.task.columns)
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return jnp.sum(outputs["losses"]), _scored(batch).sum()

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        return {"accuracy": (jnp.sum(outputs["hits"], dtype=jnp.float32), _scored(batch).sum())}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        own = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]

        def over_segments(values: jax.Array) -> jax.Array:
            return jnp.where(own, values[:, None, :], 0.0).sum(-1)  # [R, S]

        return {
            "loss": over_segments(outputs["losses"]),
            "scored": over_segments(_scored(batch)),
        }

    def summarise(self, outcomes: Outcomes, examples: Lessons) -> dict[str, float]:
        total = float(outcomes["loss"].sum(dtype=np.float64))
        mean = total / float(outcomes["scored"].sum())
        found = {"perplexity": math.exp(mean) if mean < MOST_EXPONENT else math.inf}
        if self.task.section.text is not None:
            found["bits_per_byte"] = total / math.log(2) / examples.tokens.meta["bytes"]
        return found

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Lessons
    ) -> Iterator[dict[str, Any]]:
        rows = source.each(self.task.columns, examples.rows)
        for (_, row), loss, scored in zip(rows, outcomes["loss"], outcomes["scored"], strict=True):
            shown = {c: v[:MOST_SAID] if isinstance(v, str) else v for c, v in row.items()}
            mean = float(loss / scored)
            yield {**shown, "tokens": int(scored), "loss": mean}

    def exchanges(
        self, source: Source, examples: Lessons, most: int
    ) -> Iterator[tuple[Conversation, str]]:
        """The first conversations up to their last answer, each with it; of texts there is none."""
        if self.task.section.text is not None:
            return
        for _, row in source.each(
            self.task.columns, list(dict.fromkeys(examples.rows.tolist()))[:most]
        ):
            messages = list(self._conversation(row))
            while messages and messages[-1]["role"] != "assistant":
                messages.pop()
            if len(messages) > 1:
                yield messages[:-1], messages[-1]["content"]

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        if self.task.section.text is None:
            raise UserError("This run goes on with texts; it has no class to give one.")
        for text in inputs:
            yield {self.task.section.text: text}


def _scored(batch: Batch) -> jax.Array:
    """1 where the next token counts, else 0: `[R, T]`."""
    return (batch["targets"] != UNSCORED).astype(jnp.float32)


def _counts(lessons: Sequence[Lesson], rows: int, unknown: int) -> dict[str, int]:
    cut = [one.cut for one in lessons if one.cut]
    return {
        "tokens": sum(len(one.ids) for one in lessons),
        "scored": sum(int((one.targets != UNSCORED).sum()) for one in lessons),
        "unknown": sum(int((one.ids == unknown).sum()) for one in lessons),
        "truncated": len(cut),
        "truncated_tokens": sum(cut),
        "left_out": rows - len({one.row for one in lessons}),
    }
