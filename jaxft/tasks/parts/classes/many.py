"""Multi-label classification: a sigmoid per label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.source import Source
from jaxft.metrics.classification import multi_label_scores
from jaxft.tasks.parts.classes.one import (
    LOWER_OR_LONGER,
    Section,
    focal,
    labelled_loss,
    logits_of,
    prediction_of,
)
from jaxft.tasks.parts.contract import Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import (
    Labels,
    class_flags,
    label_names,
    named_weights,
    one_or_zero,
    read_rows,
)
from jaxft.tasks.parts.metric import loss_and

MULTI_LABEL = "multi_label_classification"  # Hugging Face's name of the loss
MEANS = ("exact_match", "mean_average_precision", "f1_micro", "f1_macro")
SCORES = loss_and(*MEANS)


@dataclass(frozen=True)
class ManyLabels:
    """Any number of labels per example: see `jaxft.tasks.parts.classes.target.Target`."""

    section: Section
    problem = MULTI_LABEL
    primary = "mean_average_precision"
    scores = SCORES

    @property
    def columns(self) -> tuple[str, ...]:
        label = self.section.label
        return (label,) if isinstance(label, str) else tuple(label)

    def names(self, source: Source) -> tuple[str, ...]:
        if isinstance(self.section.label, list):
            return self.columns
        return label_names(source, self.section.label, self.section.labels)

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
        label = self.section.label
        if isinstance(label, str):
            return class_flags(row[label], label, names)
        return np.array([one_or_zero(row[column], column) for column in label], np.float32)

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        rows = read_rows(source, self.columns, lambda row: self.parse(row, names))
        values = np.stack(rows)  # [examples, C]
        weights = label_weights(self.section.class_weights, values, names)
        return Labels(values, None if weights is None else np.where(values > 0, weights, 1.0))

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the sum over examples of the labels' mean cross-entropy, and the example count."""
        losses = self._losses(outputs, batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        right = (logits_of(outputs, batch) > 0) == (batch["labels"] > 0.5)  # [R, S, C]
        total = jnp.sum(jnp.all(right, axis=-1) * batch["weights"])
        return {"exact_match": (total, jnp.sum(batch["weights"]))}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return `probabilities` `[R, S, C]` and, with labels, the `loss` `[R, S]`."""
        probabilities = jax.nn.sigmoid(logits_of(outputs, batch))
        return {"probabilities": probabilities, **labelled_loss(self._losses, outputs, batch)}

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        return multi_label_scores(outcomes["probabilities"], labels)

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        return ((outcomes["probabilities"] > 0.5) != (labels > 0.5)).any(axis=-1)

    def prediction(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        predicted = _likely(outcomes["probabilities"][number], names)
        true = None if labels is None else _likely(labels[number], names)
        return prediction_of(number, outcomes, predicted, true, names)

    def warnings(self, outcomes: Outcomes, labels: np.ndarray, names: Sequence[str]) -> list[str]:
        """Warn of predictions that are the same for every example."""
        predicted = outcomes["probabilities"] > 0.5
        if len(labels) < 2 or (labels == labels[0]).all() or (predicted != predicted[0]).any():
            return []
        same = ", ".join(_likely(outcomes["probabilities"][0], names)) or "no label"
        return [f"all {len(labels):,} predictions are {same}; {LOWER_OR_LONGER}"]

    def _losses(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Return each example's mean cross-entropy over its labels: `[R, S]`."""
        losses = optax.sigmoid_binary_cross_entropy(logits_of(outputs, batch), batch["labels"])
        losses = focal(losses, self.section.focal) * batch.get("loss_weights", 1.0)  # [R, S, C]
        return jnp.mean(losses, axis=-1)


def label_weights(
    asked: str | Mapping[str | int, float] | None, values: np.ndarray, names: Sequence[str]
) -> np.ndarray | None:
    """Return the weight of each label's positive examples: `[C]` float32; None if all are 1.

    `balanced` gives positives and negatives the same total weight, as in PyTorch's
    `BCEWithLogitsLoss(pos_weight=...)`.

    Args:
        asked: `task.class_weights`.
        values: `[examples, C]` of 0 and 1.
        names: the labels.
    """
    if asked is None:
        return None
    if isinstance(asked, str):
        positives = values.sum(axis=0)
        return ((len(values) - positives) / np.maximum(positives, 1)).astype(np.float32)
    return named_weights(asked, names)


def _likely(shares: np.ndarray, names: Sequence[str]) -> list[str]:
    """List the labels with a probability above 0.5."""
    return [name for name, share in zip(names, shares, strict=True) if share > 0.5]
