"""Losses of text embeddings, on unit vectors and at several widths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxft.models.layers.ring.pairs import Sides, Terms, pair_sums
from jaxft.tasks.embedding.section import EmbeddingSection as Section
from jaxft.tasks.parts.contract import Batch

COMPARED = ("multiple_negatives", "cosent")  # losses of an example that depend on the others
HIDDEN = -1e9  # the score of texts that are not negatives
NOBODY = np.iinfo(np.int32).max  # the anchor of an example that is not there


def with_losses(
    section: Section, vectors: jax.Array, batch: Batch, mesh: Mesh | None
) -> dict[str, jax.Array]:
    """Return vectors `[R, S, K, D]` with the loss of each example, `losses` `[R S]`.

    Texts alone (K = 1) have no loss. Other arguments: see `batch_losses`.
    """
    if vectors.shape[2] == 1:
        return {"vectors": vectors}
    flat = vectors.reshape(-1, *vectors.shape[2:])
    return {"vectors": vectors, "losses": batch_losses(section, flat, batch, mesh)}


def batch_losses(
    section: Section, vectors: jax.Array, batch: Batch, mesh: Mesh | None = None
) -> jax.Array:
    """Compute the loss of each example of a batch: `[N]`, for N = R S.

    Source of the sum over widths: Kusupati et al. (2022), https://arxiv.org/abs/2205.13147,
    equation 1.

    Args:
        section: the config's `task` section.
        vectors: `[N, K, D]`, unit vectors of anchor, positive and negatives.
        batch: a batch of `TextTuples.collate`.
        mesh: the devices that rows are cut over; None for one.
    """
    dims = section.matryoshka_dims
    if dims is None:
        return _losses(section, vectors, batch, mesh)
    shares = section.matryoshka_weights or [1.0] * len(dims)
    each = [_losses(section, cut(vectors, dim), batch, mesh) for dim in dims]
    return jnp.stack([share * one for share, one in zip(shares, each, strict=True)]).sum(0)


def cut(vectors: jax.Array | np.ndarray, dim: int) -> jax.Array:
    """Keep the leading dimensions of vectors `[..., D]`, and scale them to length 1 again."""
    leading = vectors[..., :dim]
    return leading / jnp.linalg.norm(leading, axis=-1, keepdims=True)


def _losses(section: Section, vectors: jax.Array, batch: Batch, mesh: Mesh | None) -> jax.Array:
    """Compute the loss of each example at one width: `[N]`; arguments: see `batch_losses`."""
    count, weights = vectors.shape[1], batch["weights"].reshape(-1)
    if section.objective == "cosine":
        return (_cosines(vectors)[0] - batch["scores"].reshape(-1)) ** 2
    if section.objective == "cosent":
        scores = batch["scores"].reshape(-1)
        return _cosent(_cosines(vectors)[0], scores, weights, section.temperature, mesh)
    if section.objective == "triplet":
        right, *wrong = _cosines(vectors)
        excess = jnp.stack(wrong) - right + section.margin  # [K - 2, N]
        return jax.nn.relu(excess).mean(0)
    if section.teacher_scores is not None:
        own = jnp.stack(_cosines(vectors), -1) / section.temperature
        teacher = batch["teacher_scores"].reshape(-1, count - 1)
        return (_margins if section.objective == "margin_mse" else _divergence)(own, teacher)
    numbers = jnp.asarray(batch["text_numbers"]).reshape(-1, count)
    return _ranking(vectors, numbers, weights, section.temperature, mesh)


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
    alike: jax.Array,
    scores: jax.Array,
    weights: jax.Array,
    temperature: float,
    mesh: Mesh | None,
) -> jax.Array:
    """Compute the loss of pairs of pairs in the wrong order, the same for each example: `[N]`.

    log(1 + the sum of exp((cosine of i - cosine of j) / temperature) over i, j whose scores have
    the other order). Source: https://kexue.fm/archives/8847.

    Args:
        alike: `[N]` cosines.
        scores: `[N]` similarities.
        weights: `[N]`, 1 for an example.
        temperature: the divisor of the cosines.
        mesh: the devices that rows are cut over; None for one.
    """
    sides = Sides(alike / temperature, alike / temperature, (), (scores, weights))
    (each,) = pair_sums(_excess, sides, mesh).by_left
    loss = jax.nn.logsumexp(jnp.append(each, 0.0))
    return jnp.broadcast_to(loss, alike.shape)


def _excess(one: Any, other: Any, shared: Any, own: Any, theirs: Any, known: Any) -> Terms:
    """Compute by how much the cosine of one example exceeds that of one with a higher score."""
    del shared, known
    real = (own[1][:, None] > 0) & (theirs[1][None, :] > 0)
    wrong = (own[0][:, None] < theirs[0][None, :]) & real
    return Terms((jnp.where(wrong, one[:, None] - other[None, :], HIDDEN),))


def cosent_of_split(alike: np.ndarray, scores: np.ndarray, temperature: float) -> float:
    """Compute the loss of `_cosent` over a whole split, in the time of a sort."""
    order = np.argsort(scores, kind="stable")
    scaled, ranks = alike[order].astype(np.float64) / temperature, scores[order]
    # Of each example the log of the summed exp(-cosine) of those with higher scores.
    above = np.append(np.logaddexp.accumulate(-scaled[::-1])[::-1], -np.inf)
    terms = scaled + above[np.searchsorted(ranks, ranks, side="right")]
    return float(np.logaddexp.reduce(np.append(terms, 0.0)))


def _ranking(
    vectors: jax.Array,
    numbers: jax.Array,
    weights: jax.Array,
    temperature: float,
    mesh: Mesh | None,
) -> jax.Array:
    """Compute the cross-entropy of each example's positive among the batch's texts: `[N]`.

    Args:
        vectors: `[N, K, D]` of anchor, positive and perhaps hard negatives.
        numbers: `[N, K]`; equal texts have equal numbers.
        weights: `[N]`, 1 for an example.
        temperature: the divisor of the cosines.
        mesh: the devices that rows are cut over; None for one.
    """
    anchors, positives = numbers[:, 0], numbers[:, 1]
    # Examples in the order of their anchors, those that are not there last.
    order = jnp.argsort(jnp.where(weights > 0, anchors, NOBODY))
    ordered = jnp.where(weights > 0, anchors, NOBODY)[order]
    first, last = (jnp.searchsorted(ordered, anchors, side=side) for side in ("left", "right"))
    marks = jnp.arange(len(vectors)), weights, first, last, numbers[:, 1:]
    sides = Sides(vectors[:, 0] / temperature, vectors[:, 1:], (), marks, positives[order])
    terms = pair_sums(_among_texts, sides, mesh)
    return terms.by_left[0] - terms.plain[0]


def _among_texts(
    anchors: Any, texts: Any, shared: Any, own: Any, theirs: Any, positives: Any
) -> Terms:
    """Score texts `[n, K - 1, D]` for anchors `[m, D]`: terms `[m, n (K - 1)]`."""
    del shared
    count = texts.shape[1]
    items = texts.reshape(-1, texts.shape[-1])
    scores = jnp.matmul(anchors, items.T, precision="highest")
    places, _, first, last, _ = own
    right = _positives_of(first, last, theirs[4].reshape(-1), positives)
    absent = jnp.repeat(theirs[1] == 0, count)[None, :]
    is_first = jnp.tile(jnp.arange(count) == 0, len(texts))[None, :]
    mine = (places[:, None] == jnp.repeat(theirs[0], count)[None, :]) & is_first
    scores = jnp.where((right | absent) & ~mine, HIDDEN, scores)
    return Terms((scores,), plain=(jnp.where(mine, scores, 0.0),))


def _positives_of(
    first: jax.Array, last: jax.Array, texts: jax.Array, positives: jax.Array
) -> jax.Array:
    """Return which texts are positives of equal anchors, and so no negatives: `[m, n]` bool.

    Args:
        first, last: `[m]`, the range in `positives` of the anchors that equal each.
        texts: `[n]`, the numbers of the texts.
        positives: `[N]`, the numbers of all positives, in order of their anchors.
    """

    def compare(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        turn, right = state
        equal = positives[jnp.minimum(first + turn, len(positives) - 1)]  # [m]
        there = first + turn < last
        return turn + 1, right | (there[:, None] & (equal[:, None] == texts[None, :]))

    most = jnp.max(last - first)  # as many turns as the most frequent anchor has examples
    none = jnp.zeros((len(first), len(texts)), bool)
    return jax.lax.while_loop(lambda state: state[0] < most, compare, (jnp.int32(0), none))[1]
