"""Text classification: classes or a number for a text, a pair, or a table's row as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.batching.loader import collate_rows
from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.data.text.template import Template, parse_template
from jaxft.errors import UserError, did_you_mean
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.classes.one import apart, logits_of
from jaxft.tasks.parts.classes.target import BoundTargetTask, TargetTask, make_target
from jaxft.tasks.parts.contract import Apply, Batch, Outcomes, Outputs, Params, Sum, Sums
from jaxft.tasks.parts.labels import FILL, BadValue, Labels, read_rows, text_of
from jaxft.tasks.parts.token_examples import TokenExamples
from jaxft.tasks.text_classification.section import TextClassificationSection as Section

AGAIN = 2**31 - 1  # folded into the key of the second dropout; blocks and parts count from 0


def make(section: Section) -> TextClassification:
    """Make the task as the config's `task` section describes it.

    Raises:
        UserError: `task.template` is invalid.
    """
    template = None if section.template is None else parse_template(section.template)
    return TextClassification(section, make_target(section), template)


@dataclass(frozen=True)
class TextExamples(TokenExamples):
    """Texts as token ids, with labels; see `jaxft.tasks.parts.examples.Examples`."""

    labelled: Labels | None

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.labelled is None else self.labelled.values

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        return self.text_batch(index, row_length)

    def text_batch(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        """Collate one batch of tokens and labels."""
        batch = collate_rows(self.tokens.take(index), index, row_length)
        return batch if self.labelled is None else batch | self.labelled.batch(index)


@dataclass(frozen=True)
class BoundTextClassification(BoundTargetTask["TextClassification", TextExamples]):
    """`TextClassification` on a model."""

    def __post_init__(self) -> None:
        if self.task.section.r_drop is not None:
            _check_dropout(self.tools.model.config)

    def objective(self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        outputs = apply(params, batch, key)
        sums = self.sums(outputs, batch)
        if key is not None and self.task.section.r_drop:
            again = apply(params, batch, jax.random.fold_in(key, AGAIN))
            sums["loss"] = self.loss_of_two(outputs, again, batch)
        return sums

    def loss_of_two(self, outputs: Outputs, again: Outputs, batch: Batch) -> Sum:
        """Compute R-Drop's loss: the mean loss of two dropouts, and their weighted divergence.

        It is half of Wu et al.'s, https://arxiv.org/abs/2106.14448, equation 4, whose first term is
        a sum; so learning rates have the same effect as without R-Drop.
        """
        (first, weight), (second, _) = self.loss(outputs, batch), self.loss(again, batch)
        weights = batch["weights"] * batch.get("loss_weights", 1.0)
        different = apart(logits_of(outputs, batch), logits_of(again, batch))  # [R, S]
        assert self.task.section.r_drop is not None
        share = self.task.section.r_drop / 2
        return (first + second) / 2 + share * jnp.sum(different * weights), weight

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        self.target.parse(row, self.label_names)
        self.task.texts(row)

    def examples(self, source: Source, *, labelled: bool = True) -> TextExamples:
        labels = self.target.read(source, self.label_names) if labelled else None
        tokens = self.tools.encoded_by_row(
            partial(self._encode, labelled),
            source,
            kind="tokens",
            columns=self.task.input_columns,
            template=self.task.section.template,
        )
        return TextExamples(tokens, labels)

    def _encode(
        self, strict: bool, source: Source
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Encode every row; the metadata are counts and truncated tokens.

        Args:
            strict: whether a blank text is an error.
            source: the rows.
        """
        texts = read_rows(source, self.task.input_columns, lambda row: self.task.texts(row, strict))
        pairs = [text[1] for text in texts] if len(texts[0]) > 1 else None
        encode, most = self.tools.tokenizer.encode, self.tools.max_length
        encoded = encode([text[0] for text in texts], pairs, max_length=most)
        examples = [
            {"input_ids": ids, "token_type_ids": types}
            for ids, types in zip(encoded.ids, encoded.type_ids, strict=True)
        ]
        return examples, {"counts": encoded.counts, "cut": encoded.cut}

    def describe(
        self, source: Source, outcomes: Outcomes, examples: TextExamples
    ) -> Iterator[dict[str, Any]]:
        for number, row in source.each(self.task.input_columns):
            text = " | ".join(self.task.texts(row, strict=False))
            yield {"text": text} | self.target.prediction(
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
        """Parse an input line, a JSON object, into the cells that the template reads."""
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            shown = json.dumps(dict.fromkeys(self.task.input_columns[:2], "..."))
            raise UserError(
                f"line {number}: this run reads rows of a table, and the line is not a JSON "
                "object.",
                f"Write for example {shown}, or name a CSV file with --file.",
            )
        for column in self.task.input_columns:
            if column not in row:
                raise UserError(
                    f"line {number}: the row has no '{column}'; use null for a missing value.",
                    did_you_mean(column, row),
                )
        return {column: row[column] for column in self.task.input_columns}


def _check_dropout(config: Any) -> None:
    """Raise a UserError if the model has no dropout, which R-Drop needs."""
    if config == config.with_dropout(0.0):
        raise UserError(
            "task.r_drop compares two dropouts of a text, and this model has no dropout.",
            "Set model.dropout; 0.1 is usual.",
        )


@dataclass(frozen=True)
class TextClassification(TargetTask):
    """Text classification: classes or a number for a text, a pair, or a table's row as text."""

    section: Section
    template: Template | None = None
    bound = BoundTextClassification
    packs = True

    @property
    def card(self) -> Card:
        read = READ_TEXT
        if self.template is not None:
            read += "  # as task.template writes a row"
        elif self.section.text_pair is not None:
            read = READ_TEXT.replace('"Your text."', '"First text.", "Second text."')
        lines = (read, APPLY, "print(outputs.logits)")
        return Card("text-classification", "AutoModelForSequenceClassification", lines)

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns of the text or texts."""
        if self.template is not None:
            return self.template.columns
        pair = self.section.text_pair
        return (self.section.text,) if pair is None else (self.section.text, pair)

    @property
    def text_column(self) -> str:
        return self.section.text

    def row_texts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return self.texts(row, strict=False)

    def texts(self, row: Mapping[str, Any], strict: bool = True) -> tuple[str, ...]:
        """Read the text of a row, or the two texts.

        Raises:
            BadValue: a cell is not a text, or not a number of the template; or, if `strict`, a
                text is blank.
        """
        template = self.template
        if template is not None:
            if strict and template.is_empty(row):
                raise BadValue("has no value in any column of the template", FILL)
            try:
                return (template.render(row),)
            except ValueError as error:
                raise BadValue(str(error)) from None
        return tuple(text_of(row[column], column, not strict) for column in self.input_columns)
