"""Causal language modeling: the next token of documents, or of answers in conversations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.data.text.answers import ASSISTANT, Exchange, Scoring, check_conversation
from jaxft.data.text.chat_warnings import chat_warnings
from jaxft.data.text.dialogue import UNSCORED, Lesson, of_conversations, of_documents
from jaxft.errors import UserError
from jaxft.models.model import Model
from jaxft.tasks.causal_lm.conversations import Talk, talk_of
from jaxft.tasks.causal_lm.section import CausalLmSection as Section
from jaxft.tasks.parts.arrays import Apply, Batch, Facts, Outcomes, Outputs, Params, Sum, Sums
from jaxft.tasks.parts.card import GENERATE, WRITE, Card
from jaxft.tasks.parts.contract import BoundTask, Task
from jaxft.tasks.parts.labels import read_rows, text_of
from jaxft.tasks.parts.metric import HIGHER, LOWER, Metric, exponential
from jaxft.tasks.parts.token_examples import (
    TokenExamples,
    is_scored,
    of_segments,
    row_targets,
    summed_losses,
    token_accuracy,
)
from jaxft.tasks.parts.tools import ending_files

MOST_SHOWN = 200  # characters of a document in the predictions file
METRICS = {"loss": LOWER, "accuracy": HIGHER, "perplexity": LOWER}


class Lessons(TokenExamples):
    """Token ids with the next tokens; see `jaxft.tasks.parts.examples.Examples`."""

    @property
    def rows(self) -> np.ndarray:
        return np.asarray(self.tokens.meta["rows"])

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        taken = self.tokens.take(index)
        batch = collate_rows(taken, index, row_length)
        targets = row_targets(index, row_length, lambda number: taken[number]["targets"])
        return batch | {"targets": targets}


class BoundCausalLm(BoundTask["CausalLm", Lessons]):
    """`CausalLm` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        if self.task.section.text is not None:
            self._document(row)
        else:
            check_conversation(self._talk(row).messages, source.place(number))

    def examples(self, source: Source, *, labelled: bool = True) -> Lessons:
        own, settings = self.task.section, None
        if own.text is None:
            template = self.tools.chat_template
            settings = [template.text, dict(template.tokens), own.train_on, own.ignore_empty_think]
            settings += [sorted(self.tools.end_ids), own.tools, own.system]
        tokens = self.tools.encoded_by_row(
            self._encode,
            source,
            kind="next tokens",
            template=settings,
            columns=self.task.columns,
        )
        return Lessons(tokens)

    def _encode(self, source: Source) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every example; the metadata are counts, rows, truncated tokens and bytes."""
        size, tokenizer, length = 0, self.tools.tokenizer, self.tools.max_length
        warnings: list[str] = []
        if self.task.section.text is not None:
            texts = read_rows(source, self.task.columns, self._document)
            lessons = list(of_documents(texts, tokenizer, length))
            taught = {lesson.row for lesson in lessons}
            size = sum(len(texts[row].encode()) for row in taught)
        else:
            lessons = list(self._lessons(source))
            warnings = chat_warnings(lessons, tokenizer, self.tools.end_ids)
        lessons = [lesson for lesson in lessons if (lesson.targets != UNSCORED).any()]
        if not lessons:
            raise UserError(
                f"{source.spec}: no row has a token to learn within {length} tokens.",
                "Raise data.max_length: a prompt that fills it leaves no room for the answer.",
            )
        return [{"input_ids": one.ids, "targets": one.targets} for one in lessons], {
            "counts": _counts(lessons, len(source), tokenizer.unknown_id),
            "cut": {number: one.cut for number, one in enumerate(lessons) if one.cut},
            "rows": [one.row for one in lessons],
            "bytes": size,
            "warnings": warnings,
        }

    def _lessons(self, source: Source) -> Iterator[Lesson]:
        """Yield the examples of the source's conversations."""
        own, tools = self.task.section, self.tools
        talks = read_rows(source, self.task.columns, self._talk)
        yield from of_conversations(
            [one.messages for one in talks],
            tools.chat_template,
            tools.tokenizer,
            tools.max_length,
            source.place,
            tools=[one.tools for one in talks],
            scoring=Scoring(own.train_on, own.ignore_empty_think, tools.end_ids),
        )

    def _document(self, row: Mapping[str, Any]) -> str:
        """Read a row's text; a blank one has no token to learn, and counts as left out."""
        (column,) = self.task.columns
        return text_of(row[column], column, empty=True)

    def _talk(self, row: Mapping[str, Any]) -> Talk:
        """Read a row's conversation."""
        return talk_of(self.task.section, row)

    def objective(self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        """Add the load-balancing loss of a mixture's routers, where it is asked for.

        As in transformers it is that of the batch, or of each of its micro-batches. Evaluations,
        whose loss makes the perplexity, are without it.
        """
        outputs = apply(params, batch, key)
        sums = dict(self.sums(outputs, batch))
        if "aux_loss" in outputs:
            (total, weight), balance = sums["loss"], outputs["aux_loss"]
            factor = self.tools.model.config.fields["router_aux_loss_coef"]
            sums["loss"] = total + factor * balance * weight, weight
        return sums

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return summed_losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        return token_accuracy(outputs, batch)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        own = of_segments(batch["segment_ids"], batch["weights"].shape[1])  # [R, S, T]

        def over_segments(values: jax.Array) -> jax.Array:
            return jnp.where(own, values[:, None, :], 0.0).sum(-1)  # [R, S]

        return {
            "loss": over_segments(outputs["losses"]),
            "scored": over_segments(is_scored(batch).astype(jnp.float32)),
        }

    def summarise(self, outcomes: Outcomes, examples: Lessons) -> dict[str, float]:
        total = float(outcomes["loss"].sum(dtype=np.float64))
        scores = {"perplexity": exponential(total / float(outcomes["scored"].sum()))}
        if self.task.section.text is not None:
            scores["bits_per_byte"] = total / math.log(2) / examples.tokens.meta["bytes"]
        return scores

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Lessons
    ) -> Iterator[dict[str, Any]]:
        rows = source.each(self.task.columns, examples.rows)
        for (_, row), loss, scored in zip(rows, outcomes["loss"], outcomes["scored"], strict=True):
            shown = {c: v[:MOST_SHOWN] if isinstance(v, str) else v for c, v in row.items()}
            mean = float(loss / scored)
            yield {**shown, "tokens": int(scored), "loss": mean}

    def exchanges(self, source: Source, examples: Lessons, most: int) -> Iterator[Exchange]:
        """Yield the first conversations up to their last answer in words; none for documents."""
        if self.task.section.text is not None:
            return
        for _, row in source.each(
            self.task.columns, list(dict.fromkeys(examples.rows.tolist()))[:most]
        ):
            talk = self._talk(row)
            messages = list(talk.messages)
            while messages and not _is_answer(messages[-1]):
                messages.pop()
            if len(messages) > 1:
                yield Exchange(messages[:-1], messages[-1]["content"], talk.tools)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        if self.task.section.text is None:
            raise UserError("This run continues conversations, and has no labels to predict.")
        for text in inputs:
            yield {self.task.section.text: text}


def _is_answer(message: Mapping[str, Any]) -> bool:
    """Return whether a message is the assistant's, and text."""
    content = message.get("content")
    return message["role"] == ASSISTANT and isinstance(content, str) and bool(content)


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


class CausalLm(Task):
    """Causal language modeling: the next token of documents, or of answers in conversations."""

    section: Section

    bound = BoundCausalLm
    card = Card(
        "text-generation",
        "AutoModelForCausalLM",
        ('inputs = tokenizer("Your prompt", return_tensors="pt")', GENERATE, WRITE),
    )
    primary = "loss"
    packs = True
    truncates = False

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return METRICS if self.section.text is None else {**METRICS, "bits_per_byte": LOWER}

    @property
    def columns(self) -> tuple[str, ...]:
        own = self.section
        return self.text_columns if own.tools is None else (*self.text_columns, own.tools)

    @property
    def text_columns(self) -> tuple[str, ...]:
        own = self.section
        names = (own.text, own.messages, own.prompt, own.answer, own.system)
        return tuple(name for name in names if name is not None)

    @property
    def text_column(self) -> str | None:
        return self.section.text

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        del labels
        return ending_files(model)


make = CausalLm
