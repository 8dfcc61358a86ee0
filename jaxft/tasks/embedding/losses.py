"""Losses of text embeddings, on unit vectors and at several widths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.parts.contract import Batch

COMPARED = ("multiple_negatives", "cosent")  # losses of an example that depend on the others
HIDDEN = -1e9  # the score of texts that are not negatives


def batch_losses(section: Section, vectors: jax.Array, batch: Batch) -> jax.Array:
    """Compute the loss of each example of a batch: `[N]`, for N = R S.

    Source of the sum over widths: Kusupati et al. (2022), https://arxiv.org/abs/2205.13147,
    equation 1.

    Args:
        section: the config's `task` section.
        vectors: `[N, K, D]`, unit vectors of anchor, positive and negatives.
        batch: a batch of `TextTuples.collate`.
    """
    dims = section.matryoshka_dims
    if dims is None:
        return _losses(section, vectors, batch)
    shares = section.matryoshka_weights or [1.0] * len(dims)
    each = [_losses(section, cut(vectors, dim), batch) for dim in dims]
    return jnp.stack([share * one for share, one in zip(shares, each, strict=True)]).sum(0)


def cut(vectors: jax.Array | np.ndarray, dim: int) -> jax.Array:
    """Keep the leading dimensions of vectors `[..., D]`, and scale them to length 1 again."""
    leading = vectors[..., :dim]
    return leading / jnp.linalg.norm(leading, axis=-1, keepdims=True)


def _losses(section: Section, vectors: jax.Array, batch: Batch) -> jax.Array:
    """Compute the loss of each example at one width: `[N]`; arguments: see `batch_losses`."""
    count, weights = vectors.shape[1], batch["weights"].reshape(-1)
    if section.objective == "cosine":
        return (_cosines(vectors)[0] - batch["scores"].reshape(-1)) ** 2
    if section.objective == "cosent":
        scores = batch["scores"].reshape(-1)
        return _cosent(_cosines(vectors)[0], scores, weights, section.temperature)
    if section.objective == "triplet":
        right, *wrong = _cosines(vectors)
        excess = jnp.stack(wrong) - right + section.margin  # [K - 2, N]
        return jax.nn.relu(excess).mean(0)
    if section.teacher_scores is not None:
        own = jnp.stack(_cosines(vectors), -1) / section.temperature
        teacher = batch["teacher_scores"].reshape(-1, count - 1)
        return (_margins if section.objective == "margin_mse" else _divergence)(own, teacher)
    numbers = batch["text_numbers"].reshape(-1, count)
    return _ranking(vectors, numbers, weights, section.temperature)


def _cosines(vectors: jax.Array) -> list[jax.Array]:
    """Return the cosines of each anchor with its other texts: K - 1 arrays `[N]`."""
    count = vectors.shape[1]
    return [jnp.sum(vectors[:, 0] * vectors[:, k], axis=-1) for k in range(1, count)]


def _margins(own: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compute the squared error of the positive's lead over each negative, averaged: `[N]`.

    Source: Hofstätter et al. (2020), https://arxiv.org/abs/2010.02666, equation 1.

    Args:
        own, teacher: `[N, K - 1]` scores of the positive and of each negative.
    """
    leads, expected = own[:, :1] - own[:, 1:], teacher[:, :1] - teacher[:, 1:]
    return jnp.square(leads - expected).mean(-1)


def _divergence(own: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compute the divergence of the softmax of scores from the teacher's: `[N]`.

    Args:
        own, teacher: `[N, K - 1]` scores of the positive and of each negative.
    """
    return optax.kl_divergence(jax.nn.log_softmax(own), jax.nn.softmax(teacher))


def _cosent(
    alike: jax.Array, scores: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """Compute the loss of pairs of pairs in the wrong order, the same for each example: `[N]`.

    log(1 + the sum of exp((cosine of i - cosine of j) / temperature) over i, j whose scores have
    the other order). Source: https://kexue.fm/archives/8847.

    Args:
        alike: `[N]` cosines.
        scores: `[N]` similarities.
        weights: `[N]`, 1 for an example.
        temperature: the divisor of the cosines.
    """
    excess = (alike[:, None] - alike[None, :]) / temperature  # [N, N]
    real = (weights[:, None] > 0) & (weights[None, :] > 0)
    excess = jnp.where((scores[:, None] < scores[None, :]) & real, excess, HIDDEN)
    loss = jax.nn.logsumexp(jnp.append(excess.reshape(-1), 0.0))
    return jnp.broadcast_to(loss, alike.shape)


def cosent_of_split(alike: np.ndarray, scores: np.ndarray, temperature: float) -> float:
    """Compute the loss of `_cosent` over a whole split, in the time of a sort."""
    order = np.argsort(scores, kind="stable")
    scaled, ranks = alike[order].astype(np.float64) / temperature, scores[order]
    # Of each example the log of the summed exp(-cosine) of those with higher scores.
    above = np.append(np.logaddexp.accumulate(-scaled[::-1])[::-1], -np.inf)
    terms = scaled + above[np.searchsorted(ranks, ranks, side="right")]
    return float(np.logaddexp.reduce(np.append(terms, 0.0)))


def _ranking(
    vectors: jax.Array, numbers: jax.Array, weights: jax.Array, temperature: float
) -> jax.Array:
    """Compute the cross-entropy of each example's positive among the batch's texts: `[N]`.

    Args:
        vectors: `[N, K, D]` of anchor, positive and perhaps hard negatives.
        numbers: `[N, K]`; equal texts have equal numbers.
        weights: `[N]`, 1 for an example.
        temperature: the divisor of the cosines.
    """
    count = len(vectors)
    items = jnp.swapaxes(vectors[:, 1:], 0, 1).reshape(-1, vectors.shape[-1])  # [(K - 1) N, D]
    owners = jnp.swapaxes(numbers[:, 1:], 0, 1).reshape(-1)
    scores = jnp.matmul(vectors[:, 0], items.T, precision="highest") / temperature
    own = jnp.arange(len(items))[None, :] == jnp.arange(count)[:, None]
    # The positives of equal anchors are no negatives.
    alike = (numbers[:, 0][None, :] == numbers[:, :1]) & (weights > 0)[None, :]  # [N, N]
    theirs = owners[None, :] == numbers[:, 1:2]  # [N, (K - 1) N]
    right = alike.astype(jnp.float32) @ theirs.astype(jnp.float32) > 0
    absent = jnp.tile(weights == 0, vectors.shape[1] - 1)[None, :]
    scores = jnp.where((right | absent) & ~own, HIDDEN, scores)
    return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(count))
