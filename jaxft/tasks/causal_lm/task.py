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
from jaxft.data.sources.open import Source
from jaxft.data.text.chat import ChatTemplate, load_chat_template
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
from jaxft.tasks.parts.contract import Batch, Sums, Tools
from jaxft.tasks.parts.labels import read_rows, text_of
from jaxft.tasks.parts.token_examples import TokenExamples, of_segments, row_targets

MOST_SAID = 200  # characters of a document that a person is shown
MOST_EXPONENT = 700  # beyond it e to that has no float


def make(section: Section) -> CausalLm:
    """The task as the config's `task` section describes it."""
    return CausalLm(section)


@dataclass(frozen=True)
class Lessons(TokenExamples):
    """Token ids, each with the next token; see `jaxft.tasks.parts.contract.Examples`.

    Attributes:
        from_rows: `[examples]` the row of the source that each is from.
    """

    labels: None = None
    random: bool = False

    @property
    def from_rows(self) -> list[int]:
        return self.tokens.meta["rows"]

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        targets = row_targets(index, row_length, lambda number: self.tokens[number]["targets"])
        return batch | {"targets": targets}


@dataclass(frozen=True)
class CausalLm:
    """See `jaxft.tasks.parts.contract.Task`."""

    section: Section
    kind: str = "causal_lm"
    primary: str = "loss"
    packs: bool = True

    @property
    def metric_names(self) -> tuple[str, ...]:
        names = ("loss", "accuracy", "perplexity")
        return names if self.section.text is None else (*names, "bits_per_byte")

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        return tuple(c for c in (own.text, own.messages, own.prompt, own.answer) if c is not None)

    def label_names(self, source: Source) -> tuple[str, ...]:
        del source
        return ()

    def check_row(
        self, source: Source, number: int, row: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        """Raise what is wrong with a row: its text, or its conversation."""
        del names
        if self.section.text is not None:
            self._document(row)
        else:
            heard_of(self._conversation(row), source.place(number))

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> Lessons:
        del names
        template = None if self.section.text is not None else _template_of(tools)
        tokens = tools.once(
            partial(self._encode, source, tools.tokenizer, template, tools.max_length),
            kind="next tokens",
            source=source.fingerprint,
            tokenizer=tools.tokenizer.fingerprint,
            template=template and [template.text, dict(template.tokens)],
            max_length=tools.max_length,
            columns=self.columns,
        )
        return Lessons(tokens)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, template: ChatTemplate | None, length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every example's tokens; of the whole, counts, rows, and how much of which was cut."""
        size = 0
        if template is None:
            texts = read_rows(source, self.columns, self._document)
            lessons = list(of_documents(texts, tokenizer, length))
            taught = {lesson.row for lesson in lessons}
            size = sum(len(texts[row].encode()) for row in taught)
        else:
            asked = read_rows(source, self.columns, self._conversation)
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
        (column,) = self.columns
        return text_of(row[column], column, empty=True)

    def _conversation(self, row: Mapping[str, Any]) -> Conversation:
        """A row's messages."""
        own = self.section
        if own.messages is not None:
            return row[own.messages]
        asked, said = (text_of(row[column], column) for column in self.columns)
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]

    def loss(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(outputs["losses"]), _scored(batch).sum()

    def metrics(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
        return {"accuracy": (jnp.sum(outputs["hits"], dtype=jnp.float32), _scored(batch).sum())}

    def outcomes(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        own = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]

        def over_segments(values: jax.Array) -> jax.Array:
            return jnp.where(own, values[:, None, :], 0.0).sum(-1)  # [R, S]

        return {
            "loss": over_segments(outputs["losses"]),
            "scored": over_segments(_scored(batch)),
        }

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Lessons, names: Sequence[str]
    ) -> dict[str, float]:
        del names
        total = float(outcomes["loss"].sum(dtype=np.float64))
        mean = total / float(outcomes["scored"].sum())
        found = {"perplexity": math.exp(mean) if mean < MOST_EXPONENT else math.inf}
        if self.section.text is not None:
            found["bits_per_byte"] = total / math.log(2) / examples.tokens.meta["bytes"]
        return found

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Lessons,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        del names
        rows = source.each(self.columns, examples.from_rows)
        for (_, row), loss, scored in zip(rows, outcomes["loss"], outcomes["scored"], strict=True):
            shown = {c: v[:MOST_SAID] if isinstance(v, str) else v for c, v in row.items()}
            mean = float(loss / scored)
            yield {**shown, "tokens": int(scored), "loss": mean}

    def exchanges(
        self, source: Source, examples: Lessons, most: int
    ) -> Iterator[tuple[Conversation, str]]:
        """The first conversations up to their last answer, each with it; of texts there is none."""
        if self.section.text is not None:
            return
        for _, row in source.each(self.columns, list(dict.fromkeys(examples.from_rows))[:most]):
            messages = list(self._conversation(row))
            while messages and messages[-1]["role"] != "assistant":
                messages.pop()
            if len(messages) > 1:
                yield messages[:-1], messages[-1]["content"]

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        if self.section.text is None:
            raise UserError("This run goes on with texts; it has no class to give one.")
        for text in inputs:
            yield {self.section.text: text}


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


def _template_of(tools: Tools) -> ChatTemplate:
    """The checkpoint's chat template."""
    folder = tools.model.tokenizer_folder
    template = load_chat_template(folder)
    if template is None:
        raise UserError(
            f"model.checkpoint: '{folder}' has no chat template, and the task is conversations.",
            "Take a chat model, or train on texts that are written out: task.text.",
        )
    return template
