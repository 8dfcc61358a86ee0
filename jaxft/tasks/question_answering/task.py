"""Extractive question answering: the part of a context that answers a question.

Source: Devlin et al. (2018), https://arxiv.org/abs/1810.04805, sections 4.2 and 4.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.metrics.answers import answer_scores
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.contract import Batch, BoundTask, Outcomes, Outputs, Sum, Task
from jaxft.tasks.parts.labels import read_rows
from jaxft.tasks.parts.metric import Metric, loss_and
from jaxft.tasks.question_answering.answers import Question, read_question
from jaxft.tasks.question_answering.section import QuestionAnsweringSection as Section
from jaxft.tasks.question_answering.spans import answers_of, best_spans, by_question, end_losses
from jaxft.tasks.question_answering.windows import Windows, answer_targets, encode_windows


class BoundQuestionAnswering(BoundTask["QuestionAnswering", Windows]):
    """`QuestionAnswering` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        read_question(row, self.task.section)

    def examples(self, source: Source, *, labelled: bool = True) -> Windows:
        section = self.task.section
        columns = self.task.columns if labelled else self.task.input_columns
        questions: list[Question] = read_rows(
            source, columns, partial(read_question, section=section, labelled=labelled)
        )
        tools = self.tools
        tokens = tools.encoded_once(
            lambda _: encode_windows(questions, tools.tokenizer, tools.max_length, section),
            source,
            kind="questions and contexts",
            columns=self.task.input_columns,
            windows=[section.doc_stride, section.max_query_length],
        )
        windows = Windows(tokens, questions, None)
        return replace(windows, targets=answer_targets(windows)) if labelled else windows

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        losses = end_losses(outputs, batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return the best span of each window (see `best_spans`) and, with answers, its `loss`."""
        spans = best_spans(outputs, batch, self.task.section.max_answer_length)
        return spans | ({"loss": end_losses(outputs, batch)} if "answer" in batch else {})

    def summarise(self, outcomes: Outcomes, examples: Windows) -> dict[str, float]:
        if examples.targets is None:
            return {}
        answers = [one.text for one in answers_of(outcomes, examples, self.task.threshold)]
        true = [[answer.text for answer in one.answers] for one in examples.questions]
        return answer_scores(answers, true, self.task.section.no_answer)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: Windows
    ) -> Iterator[dict[str, Any]]:
        """Yield a line for each question."""
        del source
        answers = answers_of(outcomes, examples, self.task.threshold)
        losses = None if examples.targets is None else by_question(outcomes["loss"], examples)
        for number, (asked, own) in enumerate(zip(examples.questions, answers, strict=True)):
            span = {"start": own.start, "end": own.end, "score": round(own.score, 6)}
            if losses is None:
                yield {"question": asked.question, "answer": own.text, **span}
                continue
            yield {
                "source": asked.question,
                "target": asked.answers[0].text if asked.answers else "",
                "written": own.text,
                "loss": losses[number],
                **span,
            }

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Turn each input, a question and a context with a tab between, into a row.

        Raises:
            UserError: an input has no tab.
        """
        for number, text in enumerate(inputs, start=1):
            question, tab, context = text.partition("\t")
            if not tab:
                raise UserError(
                    f"line {number}: this run reads a question with its context; the line has no "
                    "tab.",
                    "Put a tab after the question, or give a table: --file rows.jsonl.",
                )
            yield {self.task.section.question: question, self.task.section.context: context}


class QuestionAnswering(Task):
    """Extractive question answering."""

    section: Section

    bound = BoundQuestionAnswering
    card = Card(
        "question-answering",
        "AutoModelForQuestionAnswering",
        (
            READ_TEXT.replace('"Your text."', '"Your question?", "A context."'),
            APPLY,
            "first, last = outputs.start_logits.argmax(), outputs.end_logits.argmax()",
            'print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))',
        ),
    )
    primary = "f1"
    view = "texts"
    packs = True

    @property
    def threshold(self) -> float | None:
        """The threshold of no answer; None where there always is one."""
        return self.section.null_score_diff_threshold if self.section.no_answer else None

    @property
    def metrics(self) -> Mapping[str, Metric]:
        more = ("has_answer_f1", "no_answer_f1") if self.section.no_answer else ()
        return loss_and("exact_match", "f1", *more)

    @property
    def input_columns(self) -> tuple[str, ...]:
        return (self.section.question, self.section.context)

    @property
    def columns(self) -> tuple[str, ...]:
        more = (self.section.answers, self.section.answer_start)
        return (*self.input_columns, *(column for column in more if column is not None))


make = QuestionAnswering
