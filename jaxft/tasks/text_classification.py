"""One class for a text, or for a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.config_schema import TextClassification as Section
from jaxft.errors import UserError
from jaxft.metrics.classification import classification_scores
from jaxft.tasks.contract import Batch, Sums

MOST_NAMED = 10  # labels in a sentence


def make(section: Section) -> TextClassification:
    """The task as the config's `task` section describes it."""
    return TextClassification(section)


@dataclass(frozen=True)
class TextClassification:
    """See `jaxft.tasks.contract.Task`."""

    section: Section
    kind: str = "text_classification"
    primary: str = "accuracy"
    metric_names: tuple[str, ...] = ("loss", "accuracy", "f1", "mcc", "auroc")
    packs: bool = True

    @property
    def text_columns(self) -> tuple[str, ...]:
        pair = self.section.text_pair
        return (self.section.text,) if pair is None else (self.section.text, pair)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.text_columns, self.section.label)

    def label_names(self, source: Any) -> tuple[str, ...]:
        named = self.section.labels or source.class_names(self.section.label)
        if named:
            return tuple(named)
        values = {str(value) for value in self._column(source, self.section.label)}
        numeric = all(value.lstrip("-").isdigit() for value in values)
        return tuple(sorted(values, key=int if numeric else str))

    def label_ids(self, source: Any, names: Sequence[str]) -> np.ndarray:
        index = {name: number for number, name in enumerate(names)}
        index |= {str(number): number for number in range(len(names)) if str(number) not in index}
        values = [str(value) for value in self._column(source, self.section.label)]
        for row, value in enumerate(values):
            if not value.strip():
                raise UserError(
                    f"{source.spec}: row {row} has no {self.section.label}.",
                    "Fill it in, or leave the row out.",
                )
            if value not in index:
                more = ", ..." if len(names) > MOST_NAMED else ""
                raise UserError(
                    f"{source.spec}: row {row} has the label '{value}', which is not among the "
                    f"train set's labels ({', '.join(names[:MOST_NAMED])}{more}).",
                )
        counts = Counter(values)
        if len(counts) < 2:
            only = next(iter(counts), None)
            said = f"has one class only ('{only}')" if values else "has no rows"
            raise UserError(
                f"{source.spec}: the split {said}.",
                "Check data.where and the slice; slices are cut from a seeded shuffle.",
            )
        return np.array([index[value] for value in values], np.int32)

    def encode(
        self, source: Any, tokenizer: Any, max_length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, int]]:
        texts = list(self._column(source, self.section.text))
        pair = self.section.text_pair
        pairs = None if pair is None else list(self._column(source, pair))
        encoded = tokenizer.encode(texts, pairs, max_length=max_length)
        examples = [
            {"input_ids": ids, "token_type_ids": types}
            for ids, types in zip(encoded.ids, encoded.type_ids, strict=True)
        ]
        counts = {
            "tokens": encoded.tokens,
            "unknown": encoded.unknown,
            "truncated": encoded.truncated,
            "truncated_tokens": encoded.truncated_tokens,
        }
        return examples, counts

    def loss(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        losses = _losses(outputs["logits"], batch["labels"])
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
        right = jnp.argmax(outputs["logits"], axis=-1) == batch["labels"]  # [R, S]
        weight = jnp.sum(batch["weights"])
        return {"accuracy": (jnp.sum(right * batch["weights"]), weight)}

    def outcomes(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        logits = outputs["logits"].astype(jnp.float32)
        kept = {"probabilities": jax.nn.softmax(logits, axis=-1)}  # [R, S, C]
        if "labels" in batch:
            kept["loss"] = _losses(logits, batch["labels"])  # [R, S]
        return kept

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        del names
        return classification_scores(outcomes["probabilities"], labels)

    def describe(
        self, outcomes: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        for row in outcomes["probabilities"]:
            yield {
                "predicted": names[int(row.argmax())],
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(names, row, strict=True)
                },
            }

    def rows_from_text(self, texts: Iterable[str]) -> list[dict[str, str]]:
        if self.section.text_pair is None:
            return [{self.section.text: text} for text in texts]
        rows = []
        for number, text in enumerate(texts, start=1):
            first, tab, second = text.partition("\t")
            if not tab:
                raise UserError(
                    f"line {number}: this run reads pairs of texts, and the line has no tab.",
                    "Put a tab between the two texts.",
                )
            rows.append({self.section.text: first, self.section.text_pair: second})
        return rows

    def _column(self, source: Any, column: str) -> Iterator[Any]:
        if column not in source.columns:
            raise UserError(
                f"{source.spec}: there is no column '{column}'.",
                f"Its columns: {', '.join(source.columns)}.",
            )
        return (row[column] for row in source.rows(range(len(source))))


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each example, in float32: `[R, S]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
