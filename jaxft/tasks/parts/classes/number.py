"""Regression: a number per example, learned by the squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.open import Source
from jaxft.metrics.regression import regression_scores
from jaxft.tasks.parts.classes.one import ColumnTarget, labelled_loss, logits_of
from jaxft.tasks.parts.contract import Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import Labels, number_of, read_rows
from jaxft.tasks.parts.metric import HIGHER, LOWER

SCORES = {"loss": LOWER, "pearson": HIGHER, "spearman": HIGHER, "rmse": LOWER}


class Number(ColumnTarget):
    """A number per example: see `jaxft.tasks.parts.classes.target.Target`."""

    problem = "regression"
    primary = "pearson"
    scores = SCORES

    def names(self, source: Source) -> tuple[str, ...]:
        """Return the column, which names the only output."""
        del source
        return self.columns

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> float:
        del names
        return number_of(row[self.column], self.column)

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        rows = read_rows(source, self.columns, lambda row: self.parse(row, names))
        return Labels(np.array(rows, np.float32))

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed squared error of a batch, and the number of its examples."""
        losses = _losses(outputs, batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """Return none: the loss is the only streaming metric."""
        del outputs, batch
        return {}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return the `value` `[R, S]` of each example and, with labels, its `loss` `[R, S]`."""
        value = logits_of(outputs, batch)[..., 0]
        return {"value": value, **labelled_loss(_losses, outputs, batch)}

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        return regression_scores(outcomes["value"], labels)

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        """Return true for all: a predicted number is never exact."""
        del outcomes
        return np.ones(len(labels), bool)

    def prediction(
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
    """Return the squared error of each example: `[R, S]`."""
    return (logits_of(outputs, batch)[..., 0] - batch["labels"]) ** 2
