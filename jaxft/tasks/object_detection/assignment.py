"""Assignment of true boxes to detections at the least total cost, inside a compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

LARGE = 1e6  # replaces a cost that is not finite


def assign(cost: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the detection of each box, all different, of any number of images: `[..., M]`.

    Padding takes the remaining detections. It is exact (the Hungarian algorithm).

    Args:
        cost: `[..., Q, M]` of each detection for each box, M at most Q; it gets no gradient.
        labels: `[..., M]`, -1 for none.
    """
    cost = jnp.where(labels[..., None, :] < 0, 0.0, cost).swapaxes(-1, -2)  # [..., M, Q]
    cost = jnp.nan_to_num(jax.lax.stop_gradient(cost), nan=LARGE, posinf=LARGE, neginf=LARGE)
    each = cost.reshape(-1, *cost.shape[-2:])
    row, column = jax.vmap(optax.assignment.base_hungarian_algorithm)(each)
    ordered = jnp.take_along_axis(column, jnp.argsort(row, axis=1), axis=1)
    return ordered.reshape(cost.shape[:-1])
