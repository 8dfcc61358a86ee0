"""Single-label classification, and functions of logits that other targets share.

A target defines how labels are read, the loss, the metrics, and the prediction of an example.
`many.py` has several labels, `number.py` a number, and `target.py` selects by config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.source import Source
from jaxft.metrics.classification import classification_scores
from jaxft.numbers import share as percent
from jaxft.tasks.parts.classes.section import ClassesSection
from jaxft.tasks.parts.contract import Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import Labels, class_id, label_names, named_weights, read_rows
from jaxft.tasks.parts.metric import loss_and

Section = ClassesSection
SINGLE_LABEL = "single_label_classification"  # Hugging Face's name of the loss
MOST_LISTED = 20  # the most classes whose probabilities are written
BINARY = ("auroc", "average_precision", "recall_at_1pct_fpr")  # scores of two classes
LOWER_OR_LONGER = "lower or raise optimizer.lr, or train longer"
SCORES = loss_and("accuracy", "f1", "mcc", *BINARY)


@dataclass(frozen=True)
class ColumnTarget:
    """A target whose labels are in one column: see `jaxft.tasks.parts.classes.target.Target`."""

    section: Section
    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


def majority(labels: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class id of `[examples]` and its share."""
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


class OneClass(ColumnTarget):
    """One class per example: see `jaxft.tasks.parts.classes.target.Target`."""

    problem = SINGLE_LABEL
    primary = "accuracy"
    scores = SCORES

    def names(self, source: Source) -> tuple[str, ...]:
        return label_names(source, self.column, self.section.labels)

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> int:
        return class_id(row[self.column], self.column, names)

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        rows = read_rows(source, self.columns, lambda row: self.parse(row, names))
        values = np.array(rows, np.int32)
        weights = class_weights(self.section.class_weights, values, names)
        return Labels(values, None if weights is None else weights[values])

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed cross-entropy of a batch, and the weight of its examples."""
        weights = batch["weights"] * batch.get("loss_weights", 1.0)
        losses = self._losses(outputs, batch)
        share = self.section.label_smoothing
        if share is not None:
            losses = smoothed(losses, logits_of(outputs, batch), share)
        return jnp.sum(losses * weights), jnp.sum(weights)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        right = jnp.argmax(logits_of(outputs, batch), axis=-1) == batch["labels"]  # [R, S]
        return {"accuracy": (jnp.sum(right * batch["weights"]), jnp.sum(batch["weights"]))}

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return `probabilities` `[R, S, C]` and, with labels, the `loss` `[R, S]`."""
        probabilities = jax.nn.softmax(logits_of(outputs, batch), axis=-1)
        return {"probabilities": probabilities, **labelled_loss(self._losses, outputs, batch)}

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        return classification_scores(outcomes["probabilities"], labels)

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        return outcomes["probabilities"].argmax(axis=-1) != labels

    def prediction(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        shares = outcomes["probabilities"][number]  # [C]
        true = None if labels is None else names[int(labels[number])]
        return prediction_of(number, outcomes, names[int(shares.argmax())], true, names)

    def warnings(self, outcomes: Outcomes, labels: np.ndarray, names: Sequence[str]) -> list[str]:
        """Warn of predictions of a single class, or no better than the most frequent class."""
        predicted = outcomes["probabilities"].argmax(axis=-1)
        common, most = majority(labels)
        if most == 1:
            return []
        if (predicted == predicted[0]).all():
            return [
                f"all {len(labels):,} predictions are '{names[int(predicted[0])]}': the model does "
                f"not tell the classes apart; {LOWER_OR_LONGER}"
            ]
        accuracy = float((predicted == labels).mean())
        if accuracy > most:
            return []
        return [
            f"the accuracy of {percent(accuracy)} is not above {percent(most)}, that of always "
            f"predicting '{names[common]}'; {LOWER_OR_LONGER}, or choose by another metric"
        ]

    def _losses(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Compute the cross-entropy, or focal loss, of each example: `[R, S]`."""
        scores = logits_of(outputs, batch)

        def of(labels: jax.Array) -> jax.Array:
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
            return focal(losses, self.section.focal)

        if "mixed_labels" not in batch:
            return of(batch["labels"])
        share = batch["mixed_shares"]  # of the partner in the mixture
        return (1 - share) * of(batch["labels"]) + share * of(batch["mixed_labels"])


def logits_of(outputs: Outputs, batch: Batch) -> jax.Array:
    """Return each example's logits in float32: `[R, S, C]`, also if rows are examples."""
    logits = outputs["logits"].astype(jnp.float32)
    return logits.reshape(*batch["weights"].shape, logits.shape[-1])


def focal(losses: jax.Array, power: float | None) -> jax.Array:
    """Multiply cross-entropies by (1 - p)^power, where p is the probability of the true label.

    Source: Lin et al. (2017), https://arxiv.org/abs/1708.02002, without its class weights.

    Args:
        losses: -log p, any shape.
        power: gamma; None leaves the losses as they are.
    """
    if power is None:
        return losses
    # The floor keeps the gradient of powers below one finite where p is 1.
    return losses * jnp.maximum(-jnp.expm1(-losses), 1e-7) ** power


def smoothed(losses: jax.Array, logits: jax.Array, share: float) -> jax.Array:
    """Smooth cross-entropies: a share of the true class is spread evenly over all classes.

    Source: Szegedy et al. (2015), https://arxiv.org/abs/1512.00567.

    Args:
        losses: -log p of the true class, `[...]`.
        logits: `[..., C]`.
        share: epsilon.
    """
    of_all = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return (1 - share) * losses + share * of_all


def apart(one: jax.Array, other: jax.Array) -> jax.Array:
    """Compute the symmetric KL divergence of two predictions, the mean of both directions.

    Source: Wu et al. (2021), https://arxiv.org/abs/2106.14448, equation 2.

    Args:
        one, other: logits `[..., C]`.

    Returns:
        `[...]`.
    """
    first, second = (jax.nn.log_softmax(logits, axis=-1) for logits in (one, other))
    # Both sums in one: KL(p, q) + KL(q, p) = sum of (p - q)(log p - log q).
    return jnp.sum((jnp.exp(first) - jnp.exp(second)) * (first - second), axis=-1) / 2


def class_weights(
    asked: str | Mapping[str | int, float] | None, values: np.ndarray, names: Sequence[str]
) -> np.ndarray | None:
    """Return the weight of each class in the loss: `[C]` float32; None if all are equal.

    `balanced` is scikit-learn's: every class of the rows has the same total weight, and an example
    1 on average. A class without a weight of its own has 1.

    Args:
        asked: `task.class_weights`.
        values: `[examples]` class ids of the weighted rows.
        names: the classes.
    """
    if asked is None:
        return None
    if isinstance(asked, str):
        counts = np.bincount(values, minlength=len(names))
        present = np.count_nonzero(counts)
        return (len(values) / (present * np.maximum(counts, 1))).astype(np.float32)
    return named_weights(asked, names)


def likeliest(shares: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return an example's probabilities by class: of all classes, or of the 20 likeliest.

    Args:
        shares: `[C]`.
        names: the classes.
    """
    chosen = list(range(len(names)))
    if len(names) > MOST_LISTED:
        chosen = np.argsort(-shares, kind="stable")[:MOST_LISTED].tolist()
    return {names[one]: round(float(shares[one]), 6) for one in chosen}


def labelled_loss(
    losses: Callable[[Outputs, Batch], jax.Array], outputs: Outputs, batch: Batch
) -> dict[str, jax.Array]:
    """Return each example's `loss` `[R, S]` if the batch has labels."""
    return {"loss": losses(outputs, batch)} if "labels" in batch else {}


def prediction_of(
    number: int, outcomes: Outcomes, predicted: Any, true: Any, names: Sequence[str]
) -> dict[str, Any]:
    """Return an example's line of the predictions file: see `Target.prediction`.

    Args:
        number: the example.
        outcomes: `probabilities` and, with labels, `loss` of every example.
        predicted: the predicted class or classes.
        true: the true ones; None without labels.
        names: the classes.
    """
    probabilities = likeliest(outcomes["probabilities"][number], names)
    if true is None:
        return {"label": predicted, "probabilities": probabilities}
    return {
        "label": true,
        "predicted": predicted,
        "probabilities": probabilities,
        "loss": float(outcomes["loss"][number]),
    }
