"""A number an example: the squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.open import Source
from jaxft.metrics.regression import regression_scores
from jaxft.tasks.parts.classes.one import Section, logits_of
from jaxft.tasks.parts.contract import HIGHER, LOWER, Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import Labels, number_of, read_rows

SCORES = {"loss": LOWER, "pearson": HIGHER, "spearman": HIGHER, "rmse": LOWER}


@dataclass(frozen=True)
class Number:
    """A number an example: see `jaxft.tasks.parts.classes.target.Target`."""

    section: Section
    column: str
    problem = "regression"
    primary = "pearson"
    scores = SCORES

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def names(self, source: Source) -> tuple[str, ...]:
        """The one output is named after the column."""
        del source
        return self.columns

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> float:
        del names
        return number_of(row[self.column], self.column)

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        rows = read_rows(source, self.columns, lambda row: self.parse(row, names))
        return Labels(np.array(rows, np.float32))

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """The summed squared error of a batch, and the number of its examples."""
        losses = _losses(outputs, batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """None: the mean of the losses says it already."""
        del outputs, batch
        return {}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """The `value` `[R, S]` of each example and, with labels, its `loss` `[R, S]`."""
        kept = {"value": logits_of(outputs, batch)[..., 0]}
        if "labels" in batch:
            kept["loss"] = _losses(outputs, batch)
        return kept

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        return regression_scores(outcomes["value"], labels)

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        """All of them, more or less."""
        del outcomes
        return np.ones(len(labels), bool)

    def said(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        del names
        value = round(float(outcomes["value"][number]), 6)
        if labels is None:
            return {"value": value}
        return {
            "label": float(labels[number]),
            "predicted": value,
            "loss": float(outcomes["loss"][number]),
        }


def _losses(outputs: Outputs, batch: Batch) -> jax.Array:
    """The squared error of each example: `[R, S]`."""
    return (logits_of(outputs, batch)[..., 0] - batch["labels"]) ** 2
