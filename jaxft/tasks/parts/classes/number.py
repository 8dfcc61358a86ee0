"""Regression: a number per example, learned by the squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.source import Source
from jaxft.metrics.regression import regression_scores
from jaxft.models.model import Model
from jaxft.numbers import score
from jaxft.tasks.parts.classes.one import (
    LOWER_OR_LONGER,
    ColumnTarget,
    labelled_loss,
    logits_of,
)
from jaxft.tasks.parts.contract import Batch, Facts, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import Labels, number_of, read_rows
from jaxft.tasks.parts.metric import HIGHER, LOWER

SAME = 1e-3  # predictions that differ by less than this share of the labels' deviation
SCORES = {"loss": LOWER, "r2": HIGHER, "pearson": HIGHER, "spearman": HIGHER, "rmse": LOWER}


@dataclass(frozen=True)
class Number(ColumnTarget):
    """A number per example: see `jaxft.tasks.parts.classes.target.Target`.

    The model learns the standardized number, (y - mean) / deviation, so that the loss of always
    predicting the mean is 1 whatever the units; predictions, RMSE and an export have the units of
    the data.

    Attributes:
        mean, deviation: of the training rows; 0 and 1 leave the numbers as they are.
    """

    mean: float = 0.0
    deviation: float = 1.0

    problem = "regression"
    primary = "r2"
    scores = SCORES

    @property
    def facts(self) -> dict[str, float]:
        standardized = (self.mean, self.deviation) != (0.0, 1.0)
        return {"mean": self.mean, "deviation": self.deviation} if standardized else {}

    def fit(self, labels: np.ndarray, model: Model) -> dict[str, float]:
        """Return mean and deviation of the training rows, if the model's output layer is new.

        An output layer that was trained has units already, and one without a bias could not hold
        the mean in an export.
        """
        kernel, bias = output_layer(model)
        if not {kernel, bias} <= set(model.report.new):
            return {}
        deviation = float(np.std(labels, dtype=np.float64))
        mean = float(np.mean(labels, dtype=np.float64))
        return {"mean": mean, "deviation": deviation if deviation > 0 else 1.0}

    def fitted(self, facts: Facts) -> Number:
        return replace(self, mean=facts.get("mean", 0.0), deviation=facts.get("deviation", 1.0))

    def in_units(self, model: Model) -> Model:
        """Return the model whose output has the units of the data."""
        if not self.facts:
            return model
        kernel, bias = output_layer(model)
        weights, shift = (model.params[name].astype(jnp.float32) for name in (kernel, bias))
        deviation, mean = (jnp.asarray(one, jnp.float32) for one in (self.deviation, self.mean))
        changed = {kernel: weights * deviation, bias: shift * deviation + mean}
        typed = {name: one.astype(model.params[name].dtype) for name, one in changed.items()}
        return model.with_params({**model.params, **typed})

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
        """Return the summed squared error, in deviations, and the number of examples."""
        losses = self._losses(outputs, batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """Return none: the loss is the only streaming metric."""
        del outputs, batch
        return {}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return the `value` `[R, S]` of each example and, with labels, its `loss` `[R, S]`."""
        value = logits_of(outputs, batch)[..., 0] * self.deviation + self.mean
        return {"value": value, **labelled_loss(self._losses, outputs, batch)}

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

    def _losses(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Return the squared error of each example, in deviations: `[R, S]`."""
        wanted = (batch["labels"] - self.mean) / self.deviation
        return (logits_of(outputs, batch)[..., 0] - wanted) ** 2

    def warnings(self, outcomes: Outcomes, labels: np.ndarray, names: Sequence[str]) -> list[str]:
        """Warn of predictions that do not vary or are no better than the mean."""
        del names
        predicted, spread = outcomes["value"], float(np.std(labels, dtype=np.float64))
        if spread == 0 or len(labels) < 2:
            return []
        if float(np.std(predicted, dtype=np.float64)) < SAME * spread:
            return [
                f"all predictions are about {score(float(np.mean(predicted)))}: the model did not "
                f"learn; {LOWER_OR_LONGER}"
            ]
        rmse = regression_scores(predicted, labels)["rmse"]
        if rmse < spread:
            return []
        return [
            f"the RMSE of {score(rmse)} is not below {score(spread)}, that of always predicting "
            f"the mean; {LOWER_OR_LONGER}"
        ]


def output_layer(model: Model) -> tuple[str, str]:
    """Return the names of kernel and bias of the layer that gives the number.

    The second may be no parameter of the model: decoders' heads have no bias.
    """
    kernels = [
        name
        for name, leaf in model.leaves.items()
        if name.startswith(model.family.head) and name.endswith("kernel") and leaf.shape[-1] == 1
    ]
    return kernels[-1], kernels[-1].removesuffix("kernel") + "bias"
