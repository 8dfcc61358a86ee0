"""One class for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxft.config_tasks import TextClassification as Section
from jaxft.data.cache import Held, Ragged, fingerprint
from jaxft.data.loader import collate_rows
from jaxft.data.sources import Source
from jaxft.data.text import Tokenizer
from jaxft.errors import UserError
from jaxft.tasks.classes import (
    METRICS,
    batch_labels,
    class_loss,
    class_metrics,
    class_outcomes,
    class_said,
    class_summary,
)
from jaxft.tasks.contract import Examples, Tools
from jaxft.tasks.labels import column_of, label_ids, label_names


def make(section: Section) -> TextClassification:
    """The task as the config's `task` section describes it."""
    return TextClassification(section)


@dataclass(frozen=True)
class TextExamples:
    """Token ids with a class each; see `jaxft.tasks.contract.Examples`."""

    tokens: Ragged | Held
    labels: np.ndarray | None
    image_size: None = None
    random: bool = False

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    @property
    def counts(self) -> Mapping[str, int]:
        return self.tokens.meta["counts"]

    @property
    def remarks(self) -> dict[int, dict[str, Any]]:
        """How many tokens were cut away, where any were."""
        return {int(number): {"cut": cut} for number, cut in self.tokens.meta["cut"].items()}

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def without_images(self) -> TextExamples:
        return self

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        batch = collate_rows(self.tokens, index, row_length)
        if self.labels is not None:
            batch["labels"] = batch_labels(self.labels, index)  # [R, S]
        return batch


@dataclass(frozen=True)
class TextClassification:
    """See `jaxft.tasks.contract.Task`."""

    section: Section
    kind: str = "text_classification"
    primary: str = "accuracy"
    metric_names: tuple[str, ...] = METRICS
    packs: bool = True

    loss = staticmethod(class_loss)
    metrics = staticmethod(class_metrics)
    outcomes = staticmethod(class_outcomes)

    @property
    def text_columns(self) -> tuple[str, ...]:
        pair = self.section.text_pair
        return (self.section.text,) if pair is None else (self.section.text, pair)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text_columns, self.section.label)

    def label_names(self, source: Source) -> tuple[str, ...]:
        return label_names(source, self.section.label, self.section.labels)

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> TextExamples:
        labels = None if names is None else label_ids(source, self.section.label, names)
        tokens = tools.once(
            partial(self._encode, source, tools.tokenizer, tools.max_length),
            kind="tokens",
            source=source.fingerprint,
            tokenizer=tools.tokenizer.fingerprint,
            max_length=tools.max_length,
            columns=self.text_columns,
        )
        return TextExamples(tokens, labels)

    def _encode(
        self, source: Source, tokenizer: Tokenizer, max_length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
        """Every row's token ids; of the whole, counts, and how much of which text was cut."""
        texts = list(column_of(source, self.section.text))
        pair = self.section.text_pair
        pairs = None if pair is None else list(column_of(source, pair))
        encoded = tokenizer.encode(texts, pairs, max_length=max_length)
        examples = [
            {"input_ids": ids, "token_type_ids": types}
            for ids, types in zip(encoded.ids, encoded.type_ids, strict=True)
        ]
        return examples, {"counts": encoded.counts, "cut": encoded.cut}

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Examples, names: Sequence[str]
    ) -> dict[str, float]:
        del names
        return class_summary(outcomes, examples.labels)

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Examples,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        rows = source.rows(range(len(source)), self.text_columns)
        for number, row in enumerate(rows):
            text = " | ".join(str(row[column]) for column in self.text_columns)
            yield {"text": text} | class_said(number, outcomes, examples.labels, names)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(inputs, start=1):
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
