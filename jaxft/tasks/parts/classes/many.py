"""Several labels an example, each there or not: a sigmoid each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.open import Source
from jaxft.metrics.classification import multi_label_scores
from jaxft.tasks.parts.classes.one import Section, focal, likeliest, logits_of
from jaxft.tasks.parts.contract import HIGHER, LOWER, Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import (
    Labels,
    check_names,
    class_flags,
    label_names,
    one_or_zero,
    read_rows,
)

MULTI_LABEL = "multi_label_classification"  # Hugging Face's name of the loss
MEANS = ("exact_match", "mean_average_precision", "f1_micro", "f1_macro")
SCORES = {"loss": LOWER, **dict.fromkeys(MEANS, HIGHER)}


@dataclass(frozen=True)
class ManyLabels:
    """Any number of labels an example: see `jaxft.tasks.parts.classes.target.Target`."""

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
        """The summed mean of the labels' cross-entropies, and the number of examples."""
        losses = self._losses(outputs, batch)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        right = (logits_of(outputs, batch) > 0) == (batch["labels"] > 0.5)  # [R, S, C]
        total = jnp.sum(jnp.all(right, axis=-1) * batch["weights"])
        return {"exact_match": (total, jnp.sum(batch["weights"]))}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` `[R, S, C]` of each label and, with labels, the `loss` `[R, S]`."""
        kept = {"probabilities": jax.nn.sigmoid(logits_of(outputs, batch))}
        if "labels" in batch:
            kept["loss"] = self._losses(outputs, batch)
        return kept

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        return multi_label_scores(outcomes["probabilities"], labels)

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        return ((outcomes["probabilities"] > 0.5) != (labels > 0.5)).any(axis=-1)

    def said(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        shares = outcomes["probabilities"][number]  # [C]
        said = _there(shares, names)
        probabilities = likeliest(shares, names)
        if labels is None:
            return {"label": said, "probabilities": probabilities}
        return {
            "label": _there(labels[number], names),
            "predicted": said,
            "probabilities": probabilities,
            "loss": float(outcomes["loss"][number]),
        }

    def _losses(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """The mean over the labels of each example: `[R, S]`."""
        losses = optax.sigmoid_binary_cross_entropy(logits_of(outputs, batch), batch["labels"])
        losses = focal(losses, self.section.focal) * batch.get("loss_weights", 1.0)  # [R, S, C]
        return jnp.mean(losses, axis=-1)


def label_weights(
    asked: str | Mapping[str | int, float] | None, values: np.ndarray, names: Sequence[str]
) -> np.ndarray | None:
    """What an example that has a label counts for it: `[C]` float32; None where it counts 1.

    `balanced` lets those with a label count as much as those without it, as in PyTorch's
    `BCEWithLogitsLoss(pos_weight=...)`.

    Args:
        asked: `task.class_weights`.
        values: `[examples, C]` of 0 and 1.
        names: the labels.
    """
    if asked is None:
        return None
    if isinstance(asked, str):
        have = values.sum(axis=0)
        return ((len(values) - have) / np.maximum(have, 1)).astype(np.float32)
    given = {str(name): weight for name, weight in asked.items()}
    check_names(list(given), names)
    return np.array([given.get(name, 1.0) for name in names], np.float32)


def _there(shares: np.ndarray, names: Sequence[str]) -> list[str]:
    return [name for name, share in zip(names, shares, strict=True) if share > 0.5]
