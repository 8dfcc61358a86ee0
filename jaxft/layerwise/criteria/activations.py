"""Activations: how a block changes its stream, and how uneven the inputs of its matrices are."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

OUTLIER = 5.0  # an entry above this many times the mean is an outlier, as in OWL


def residual_contribution(before: jax.Array, after: jax.Array, weights: jax.Array) -> jax.Array:
    """Return how much a block changes its stream: the mean of ||after - before|| / ||before||.

    Args:
        before, after: the stream that enters the block and that leaves it, `[B, T, D]`.
        weights: `[B, T]`, 0 for padding.
    """
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    change, size = (jnp.linalg.norm(one, axis=-1) for one in (after - before, before))
    return _weighted_mean(_ratio(change, size), weights)


def state_cosine(before: jax.Array, after: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the mean cosine of the states that enter a block to those that leave it.

    Args:
        before, after: the stream, `[B, T, D]`; `after` enters the next block.
        weights: `[B, T]`, 0 for padding.
    """
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    sizes = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
    return _weighted_mean(_ratio(jnp.sum(before * after, axis=-1), sizes), weights)


def summary_cosines(after: Sequence[jax.Array], summary: jax.Array) -> list[jax.Array]:
    """Return each block's mean cosine to all other blocks, of the states that sum up an example.

    Args:
        after: the stream that leaves each block, `[B, T, D]`.
        summary: `[B, T]`, 1 at the tokens to compare: `[CLS]`, or the last token of a causal tower.

    Returns:
        A score a block; NaN for a single block.

    Source: Training-free layer selection (PRiSM, LREC 2026,
    https://openreview.net/forum?id=Atm5Id6HZE), whose highest-scoring blocks are trained.
    """
    states = [one.astype(jnp.float32) for one in after]
    units = [_ratio(one, jnp.linalg.norm(one, axis=-1, keepdims=True)) for one in states]
    total = sum(units, jnp.zeros_like(units[0]))
    return [
        _weighted_mean(jnp.sum(one * (total - one), axis=-1), summary) / jnp.float32(len(units) - 1)
        for one in units
    ]


def outlier_share(kernel: jax.Array, squares: jax.Array, multiple: float = OUTLIER) -> jax.Array:
    """Return the share of entries of |W_io| ||x_i|| above `multiple` times their mean.

    Args:
        kernel: W `[I, O]`.
        squares: `[I]`, the sum over all tokens of the squares of each input feature.
        multiple: M of the paper.

    Source: Yin et al. (2023), https://arxiv.org/abs/2310.05175, from which OWS
    (https://arxiv.org/abs/2405.18380) takes how often it samples a layer.
    """
    size = jnp.sqrt(squares.astype(jnp.float32))[:, None]
    scores = jnp.abs(kernel.astype(jnp.float32)) * size
    return jnp.mean(scores > multiple * jnp.mean(scores))


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)


def _weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    weights = weights.astype(jnp.float32)
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1)
