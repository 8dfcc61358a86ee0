"""Classes or a number for a text, for a pair of texts, or for a table's row written as text."""

from __future__ import annotations

import json
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
from jaxft.data.text.template import Template, parse_template
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.classes.one import apart, logits_of
from jaxft.tasks.parts.classes.target import BoundTargetTask, TargetTask, make_target
from jaxft.tasks.parts.contract import Apply, Batch, Card, Outcomes, Outputs, Params, Sum, Sums
from jaxft.tasks.parts.labels import FILL, BadValue, Labels, read_rows, text_of
from jaxft.tasks.parts.token_examples import TokenExamples
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.text_classification.section import TextClassificationSection as Section

AGAIN = 2**31 - 1  # folds the key of a second dropout; blocks and parts count from 0


def make(section: Section) -> TextClassification:
    """The task as the config's `task` section describes it.

    Raises:
        UserError: `task.template` is none.
    """
    template = None if section.template is None else parse_template(section.template)
    return TextClassification(section, make_target(section), template)


@dataclass(frozen=True)
class TextExamples(TokenExamples):
    """Token ids with a label each; see `jaxft.tasks.parts.contract.Examples`."""

    labelled: Labels | None

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.labelled is None else self.labelled.values

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        return batch if self.labelled is None else batch | self.labelled.batch(index)


@dataclass(frozen=True)
class TextClassification(TargetTask):
    """Classes or a number for a text, for a pair of texts, or for a table's row written as text."""

    section: Section
    template: Template | None = None
    kind = "text_classification"
    head = "text_classification"
    card = Card("text-classification", "AutoModelForSequenceClassification")
    packs = True

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of."""
        if self.template is not None:
            return self.template.columns
        pair = self.section.text_pair
        return (self.section.text,) if pair is None else (self.section.text, pair)

    @property
    def plain_text_column(self) -> str:
        return self.section.text

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundTextClassification:
        if self.section.r_drop is not None:
            _check_dropout(tools.model.config)
        return BoundTextClassification(self, tools, label_names)


@dataclass(frozen=True)
class BoundTextClassification(BoundTargetTask[TextClassification, TextExamples]):
    """See `jaxft.tasks.parts.contract.BoundTask`."""

    def objective(self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        outputs = apply(params, batch, key)
        found = self.sums(outputs, batch)
        if key is not None and self.task.section.r_drop:
            again = apply(params, batch, jax.random.fold_in(key, AGAIN))
            found["loss"] = self.loss_of_two(outputs, again, batch)
        return found

    def loss_of_two(self, outputs: Outputs, again: Outputs, batch: Batch) -> Sum:
        """R-Drop's loss: the mean of two dropouts' losses, and what they say differently.

        It is half of Wu et al.'s, https://arxiv.org/abs/2106.14448, equation 4, whose first part is
        a sum, so that a rate means what it means without.
        """
        (first, weight), (second, _) = self.loss(outputs, batch), self.loss(again, batch)
        weights = batch["weights"] * batch.get("loss_weights", 1.0)
        different = apart(logits_of(outputs, batch), logits_of(again, batch))  # [R, S]
        assert self.task.section.r_drop is not None
        share = self.task.section.r_drop / 2
        return (first + second) / 2 + share * jnp.sum(different * weights), weight

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row: its label, or its text."""
        del source, number
        self.target.parse(row, self.label_names)
        self._texts(row)

    def examples(self, source: Source, *, labelled: bool = True) -> TextExamples:
        labels = self.target.read(source, self.label_names) if labelled else None
        tokens = self.tools.once(
            partial(self._encode, source, self.tools.tokenizer, self.tools.max_length, labelled),
            kind="tokens",
            source=source.fingerprint,
            tokenizer=self.tools.tokenizer.fingerprint,
            max_length=self.tools.max_length,
            columns=self.task.input_columns,
            template=self.task.section.template,
        )
        return TextExamples(tokens, labels)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, max_length: int, strict: bool
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every row's token ids; of the whole, counts, and how much of which text was cut.

        Args:
            source, tokenizer, max_length: the rows, and how they are read.
            strict: an empty text is an error; what a person typed may be one.
        """
        texts = read_rows(source, self.task.input_columns, lambda row: self._texts(row, strict))
        pairs = [text[1] for text in texts] if len(texts[0]) > 1 else None
        encoded = tokenizer.encode([text[0] for text in texts], pairs, max_length=max_length)
        examples = [
            {"input_ids": ids, "token_type_ids": types}
            for ids, types in zip(encoded.ids, encoded.type_ids, strict=True)
        ]
        return examples, {"counts": encoded.counts, "cut": encoded.cut}

    def _texts(self, row: Mapping[str, Any], strict: bool = True) -> tuple[str, ...]:
        """The text of a row, or the two texts.

        Raises:
            BadValue: a cell is no text, or no number where the template asks for one; or, of a
                strict reading, a text is empty.
        """
        template = self.task.template
        if template is not None:
            if strict and template.is_empty(row):
                raise BadValue("has none of the template's cells", FILL)
            try:
                return (template.render(row),)
            except ValueError as error:
                raise BadValue(str(error)) from None
        return tuple(text_of(row[column], column, not strict) for column in self.task.input_columns)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: TextExamples
    ) -> Iterator[dict[str, Any]]:
        for number, row in source.each(self.task.input_columns):
            text = " | ".join(self._texts(row, strict=False))
            yield {"text": text} | self.target.said(
                number, outcomes, examples.labels, self.label_names
            )

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(inputs, start=1):
            if self.task.template is not None:
                yield self._row_of_json(text, number)
                continue
            if self.task.section.text_pair is None:
                yield {self.task.section.text: text}
                continue
            first, tab, second = text.partition("\t")
            if not tab:
                raise UserError(
                    f"line {number}: this run reads pairs of texts, and the line has no tab.",
                    "Put a tab between the two texts.",
                )
            yield {self.task.section.text: first, self.task.section.text_pair: second}

    def _row_of_json(self, text: str, number: int) -> dict[str, Any]:
        """The cells that the template reads, of a JSON object that a person typed."""
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            shown = json.dumps(dict.fromkeys(self.task.input_columns[:2], "..."))
            raise UserError(
                f"line {number}: this run reads rows of a table, and the line is no JSON object.",
                f"Such as {shown}; or name a CSV file with --file.",
            )
        for column in self.task.input_columns:
            if column not in row:
                raise UserError(
                    f"line {number}: the row has no '{column}'; null says that it is not known.",
                    did_you_mean(column, row),
                )
        return {column: row[column] for column in self.task.input_columns}


def _check_dropout(config: Any) -> None:
    """Raise a UserError where two dropouts are asked for and there is none."""
    if config == config.with_dropout(0.0):
        raise UserError(
            "task.r_drop compares two dropouts of a text, and this model has no dropout.",
            "Set model.dropout; 0.1 is usual.",
        )
