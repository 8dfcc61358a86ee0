"""What the tasks share that give an example one class: loss, metrics, and what a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.metrics.classification import classification_scores

METRICS = ("loss", "accuracy", "f1", "mcc", "auroc")
MOST_SAID = 20  # classes; where there are more, only this many probabilities are written


def class_loss(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """The summed cross-entropy of a batch, and the number of its examples."""
    losses = _losses(outputs, batch)
    return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])


def class_metrics(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Accuracy as (sum, weight)."""
    right = jnp.argmax(_logits(outputs, batch), axis=-1) == batch["labels"]  # [R, S]
    return {"accuracy": (jnp.sum(right * batch["weights"]), jnp.sum(batch["weights"]))}


def class_outcomes(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """`probabilities` `[R, S, C]` of each example and, with labels, its `loss` `[R, S]`."""
    kept = {"probabilities": jax.nn.softmax(_logits(outputs, batch), axis=-1)}
    if "labels" in batch:
        kept["loss"] = _losses(outputs, batch)
    return kept


def class_summary(
    outcomes: Mapping[str, np.ndarray], labels: np.ndarray | None
) -> dict[str, float]:
    """Scores of a whole evaluation; none without labels."""
    return {} if labels is None else classification_scores(outcomes["probabilities"], labels)


def class_said(
    number: int,
    outcomes: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    names: Sequence[str],
) -> dict[str, Any]:
    """What the model says of one example.

    Args:
        number: the example.
        outcomes: of every example, see `class_outcomes`.
        labels: `[examples]` class ids, or None.
        names: the classes.

    Returns:
        `label` and `probabilities`, those of the 20 likeliest classes at most; with labels `label`
        is the true one, and `predicted` and `loss` stand beside it.
    """
    shares = outcomes["probabilities"][number]  # [C]
    said = names[int(shares.argmax())]
    chosen = list(range(len(names)))
    if len(names) > MOST_SAID:
        chosen = np.argsort(-shares, kind="stable")[:MOST_SAID].tolist()
    probabilities = {names[one]: round(float(shares[one]), 6) for one in chosen}
    if labels is None:
        return {"label": said, "probabilities": probabilities}
    return {
        "label": names[int(labels[number])],
        "predicted": said,
        "probabilities": probabilities,
        "loss": float(outcomes["loss"][number]),
    }


def batch_labels(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The class ids of a batch's examples: `[R, S]` int32, 0 where there is none.

    Args:
        labels: `[examples]` class ids.
        index: `[rows, segments]` example numbers, -1 for none.
    """
    return np.where(index >= 0, labels[np.maximum(index, 0)], 0).astype(np.int32)


def _logits(outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> jax.Array:
    """The scores of each example's classes in float32: `[R, S, C]`, with one a row too."""
    logits = outputs["logits"].astype(jnp.float32)
    return logits.reshape(*batch["weights"].shape, logits.shape[-1])


def _losses(outputs: Mapping[str, jax.Array], batch: Mapping[str, Any]) -> jax.Array:
    """Cross-entropy of each example: `[R, S]`."""
    return optax.softmax_cross_entropy_with_integer_labels(_logits(outputs, batch), batch["labels"])
