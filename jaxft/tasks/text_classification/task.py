"""Classes or a number for a text, for a pair of texts, or for a table's row written as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxft.data.batching.loader import collate_rows
from jaxft.data.sources.open import Source
from jaxft.data.text.template import Template, parse_template
from jaxft.data.text.tokenizer import Tokenizer
from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.classes.one import Batch, Outputs, apart, logits_of
from jaxft.tasks.parts.classes.target import TargetTask, make_target
from jaxft.tasks.parts.contract import Examples, Tools
from jaxft.tasks.parts.labels import FILL, BadValue, Labels, read_rows, text_of
from jaxft.tasks.parts.token_examples import TokenExamples
from jaxft.tasks.text_classification.section import TextClassificationSection as Section


def make(section: Section) -> TextClassification:
    """The task as the config's `task` section describes it.

    Raises:
        UserError: `task.template` is none.
    """
    template = None if section.template is None else parse_template(section.template)
    return TextClassification(make_target(section), section, template)


@dataclass(frozen=True)
class TextExamples(TokenExamples):
    """Token ids with a label each; see `jaxft.tasks.parts.contract.Examples`."""

    labelled: Labels | None
    random: bool = False

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.labelled is None else self.labelled.values

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        return batch if self.labelled is None else batch | self.labelled.batch(index)


@dataclass(frozen=True)
class TextClassification(TargetTask):
    """See `jaxft.tasks.parts.contract.Task`."""

    section: Section
    template: Template | None = None
    kind: str = "text_classification"
    packs: bool = True

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of."""
        if self.template is not None:
            return self.template.columns
        pair = self.section.text_pair
        return (self.section.text,) if pair is None else (self.section.text, pair)

    def loss_of_two(self, outputs: Outputs, again: Outputs, batch: Batch) -> tuple[Array, Array]:
        """R-Drop's loss: the mean of two dropouts' losses, and what they say differently.

        It is half of Wu et al.'s, https://arxiv.org/abs/2106.14448, equation 4, whose first part is
        a sum, so that a rate means what it means without.
        """
        (first, weight), (second, _) = self.loss(outputs, batch), self.loss(again, batch)
        weights = batch["weights"] * batch.get("loss_weights", 1.0)
        different = apart(logits_of(outputs, batch), logits_of(again, batch))  # [R, S]
        assert self.section.r_drop is not None
        share = self.section.r_drop / 2
        return (first + second) / 2 + share * jnp.sum(different * weights), weight

    def check_row(
        self, source: Source, number: int, row: Mapping[str, Any], names: Sequence[str]
    ) -> None:
        """Raise what is wrong with a row: its label, or its text."""
        del source, number
        self.target.parse(row, names)
        self._texts(row)

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> TextExamples:
        labelled = None if names is None else self.target.read(source, names)
        tokens = tools.once(
            partial(self._encode, source, tools.tokenizer, tools.max_length, labelled is not None),
            kind="tokens",
            source=source.fingerprint,
            tokenizer=tools.tokenizer.fingerprint,
            max_length=tools.max_length,
            columns=self.input_columns,
            template=self.section.template,
        )
        return TextExamples(tokens, labelled)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, max_length: int, strict: bool
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every row's token ids; of the whole, counts, and how much of which text was cut.

        Args:
            source, tokenizer, max_length: the rows, and how they are read.
            strict: an empty text is an error; what a person typed may be one.
        """
        texts = read_rows(source, self.input_columns, lambda row: self._texts(row, strict))
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
        if self.template is not None:
            if strict and self.template.is_empty(row):
                raise BadValue("has none of the template's cells", FILL)
            try:
                return (self.template.render(row),)
            except ValueError as error:
                raise BadValue(str(error)) from None
        return tuple(text_of(row[column], column, not strict) for column in self.input_columns)

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Examples,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        for number, row in source.each(self.input_columns):
            text = " | ".join(self._texts(row, strict=False))
            yield {"text": text} | self.target.said(number, outcomes, examples.labels, names)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(inputs, start=1):
            if self.template is not None:
                yield self._row_of_json(text, number)
                continue
            if self.section.text_pair is None:
                yield {self.section.text: text}
                continue
            first, tab, second = text.partition("\t")
            if not tab:
                raise UserError(
                    f"line {number}: this run reads pairs of texts, and the line has no tab.",
                    "Put a tab between the two texts.",
                )
            yield {self.section.text: first, self.section.text_pair: second}

    def _row_of_json(self, text: str, number: int) -> dict[str, Any]:
        """The cells that the template reads, of a JSON object that a person typed."""
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            shown = json.dumps(dict.fromkeys(self.input_columns[:2], "..."))
            raise UserError(
                f"line {number}: this run reads rows of a table, and the line is no JSON object.",
                f"Such as {shown}; or name a CSV file with --file.",
            )
        for column in self.input_columns:
            if column not in row:
                raise UserError(
                    f"line {number}: the row has no '{column}'; null says that it is not known.",
                    did_you_mean(column, row),
                )
        return {column: row[column] for column in self.input_columns}
