"""What the tasks share that tell one class of an example; and several labels, or a number.

A target is what is told of an example: how its labels are read and its loss, metrics and words are
made. `classes_many.py` has several labels, `classes_number.py` a number, `classes_target.py` takes
the one that a config asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.data.sources.open import Source
from jaxft.metrics.classification import classification_scores
from jaxft.tasks.parts.classes.section import ClassesSection
from jaxft.tasks.parts.contract import HIGHER, LOWER, Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.labels import Labels, check_names, class_id, label_names, read_rows

Section = ClassesSection
SINGLE_LABEL = "single_label_classification"  # Hugging Face's name of the loss
MOST_SAID = 20  # classes; where there are more, only this many probabilities are written
OF_TWO = ("auroc", "average_precision", "recall_at_1pct_fpr")  # scores of two classes
SCORES = {"loss": LOWER, **dict.fromkeys(("accuracy", "f1", "mcc", *OF_TWO), HIGHER)}


@dataclass(frozen=True)
class OneClass:
    """One class an example: see `jaxft.tasks.parts.classes.target.Target`."""

    section: Section
    column: str
    problem = SINGLE_LABEL
    primary = "accuracy"
    scores = SCORES

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

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
        """The summed cross-entropy of a batch, and the weight of its examples."""
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
        """`probabilities` `[R, S, C]` of each example and, with labels, its `loss` `[R, S]`."""
        kept = {"probabilities": jax.nn.softmax(logits_of(outputs, batch), axis=-1)}
        if "labels" in batch:
            kept["loss"] = self._losses(outputs, batch)
        return kept

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        return classification_scores(outcomes["probabilities"], labels)

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        return outcomes["probabilities"].argmax(axis=-1) != labels

    def said(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        shares = outcomes["probabilities"][number]  # [C]
        said = names[int(shares.argmax())]
        probabilities = likeliest(shares, names)
        if labels is None:
            return {"label": said, "probabilities": probabilities}
        return {
            "label": names[int(labels[number])],
            "predicted": said,
            "probabilities": probabilities,
            "loss": float(outcomes["loss"][number]),
        }

    def _losses(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Cross-entropy, or focal loss, of each example: `[R, S]`."""
        scores = logits_of(outputs, batch)

        def of(labels: jax.Array) -> jax.Array:
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
            return focal(losses, self.section.focal)

        if "mixed_labels" not in batch:
            return of(batch["labels"])
        share = batch["mixed_shares"]  # of the other image, and of what it shows
        return (1 - share) * of(batch["labels"]) + share * of(batch["mixed_labels"])


def logits_of(outputs: Outputs, batch: Batch) -> jax.Array:
    """The scores of each example's classes in float32: `[R, S, C]`, with one a row too."""
    logits = outputs["logits"].astype(jnp.float32)
    return logits.reshape(*batch["weights"].shape, logits.shape[-1])


def focal(losses: jax.Array, power: float | None) -> jax.Array:
    """Cross-entropies times (1 - p)^power, where p is the probability of what is true.

    Source: Lin et al. (2017), https://arxiv.org/abs/1708.02002, without its class weights.

    Args:
        losses: -log p, any shape.
        power: gamma; None leaves the losses as they are.
    """
    if power is None:
        return losses
    # The floor keeps the slope of powers below one finite where p is 1.
    return losses * jnp.maximum(-jnp.expm1(-losses), 1e-7) ** power


def smoothed(losses: jax.Array, logits: jax.Array, share: float) -> jax.Array:
    """Cross-entropies with a share of what is true spread evenly over all classes.

    Source: Szegedy et al. (2015), https://arxiv.org/abs/1512.00567.

    Args:
        losses: -log p of what is true, `[...]`.
        logits: `[..., C]`.
        share: epsilon.
    """
    of_all = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return (1 - share) * losses + share * of_all


def apart(one: jax.Array, other: jax.Array) -> jax.Array:
    """How far two predictions of an example lie apart: the mean of both their KL divergences.

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
    """What each class counts: `[C]` float32; None where all count the same.

    `balanced` is scikit-learn's: every class that the rows have counts the same in total, and an
    example 1 on average. A class without a weight of its own has 1.

    Args:
        asked: `task.class_weights`.
        values: `[examples]` class ids, of the rows that are weighted.
        names: the classes.
    """
    if asked is None:
        return None
    if isinstance(asked, str):
        counts = np.bincount(values, minlength=len(names))
        there = np.count_nonzero(counts)
        return (len(values) / (there * np.maximum(counts, 1))).astype(np.float32)
    given = {str(name): weight for name, weight in asked.items()}
    check_names(list(given), names)
    return np.array([given.get(name, 1.0) for name in names], np.float32)


def likeliest(shares: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The probabilities that are written of an example: of all classes, or of the 20 likeliest.

    Args:
        shares: `[C]`.
        names: the classes.
    """
    chosen = list(range(len(names)))
    if len(names) > MOST_SAID:
        chosen = np.argsort(-shares, kind="stable")[:MOST_SAID].tolist()
    return {names[one]: round(float(shares[one]), 6) for one in chosen}
