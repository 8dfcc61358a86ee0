"""The loss of next tokens over a large vocabulary: B rows, T positions, D width, V words."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# Scores of one row that are held at once: positions x words. In float32 that is 128 MiB a row.
MOST_SCORES = 2**25
UNSCORED = -1  # the target of a position that counts for nothing


class Scorer(Protocol):
    """A module that gives the scores of the next token: [B, T, D] -> [B, T, V] float32."""

    def scores(self, x: jax.Array) -> jax.Array:
        """The scores at each position."""


def token_losses(top: Scorer, x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each position's cross-entropy, and whether the highest score is the target's.

    Scores of shape [B, T, V] never exist in full where a row has many of them, neither on the way
    forward nor on the way back: positions are taken a piece at a time, and each piece's scores
    are computed again for its gradient. How many pieces depends on T x V alone.

    Args:
        top: what gives the scores; its parameters are in it.
        x: the stream, [B, T, D].
        targets: the right token at each position, [B, T] int32; -1 where none is scored.

    Returns:
        Losses [B, T] float32, 0 where nothing is scored, and hits [B, T] bool.
    """
    length = x.shape[1]
    words = jax.eval_shape(top.scores, x).shape[-1]
    count = min(-(-length * words // MOST_SCORES), length)
    if count == 1:
        return scored_losses(top.scores(x), targets)
    size = -(-length // count)
    spare = ((0, 0), (0, size * count - length))

    def cut(values: jax.Array) -> jax.Array:
        """[B, T, ...] -> [pieces, B, T / pieces, ...]: every device keeps its own rows."""
        whole = values.reshape(values.shape[0], count, size, *values.shape[2:])
        return jnp.moveaxis(whole, 1, 0)

    filled = jnp.pad(targets, spare, constant_values=UNSCORED)
    losses, hits = _in_pieces(top, cut(jnp.pad(x, (*spare, (0, 0)))), cut(filled))
    joined = (jnp.moveaxis(a, 0, 1).reshape(-1, size * count) for a in (losses, hits))
    losses, hits = (whole[:, :length] for whole in joined)
    return losses, hits


def _in_pieces(top: Scorer, x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`scored_losses` of pieces [N, B, T, D], one after the other."""
    graph, values = nnx.split(top)
    # Each piece adds to the parameters' gradients in the type that the scan is given. Over devices
    # the sum is taken once, after the scan: the TPU compiler moves it out.
    wide = jax.tree.map(lambda value: value.astype(jnp.float32), values)

    def score(wide: nnx.State, x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        narrow = jax.tree.map(lambda value, like: value.astype(like.dtype), wide, values)
        return scored_losses(nnx.merge(graph, narrow).scores(x), targets)

    # Nothing is merged between the turns of a scan, so the guard against it would cost for nothing.
    again = jax.checkpoint(score, prevent_cse=False)
    return lax.scan(lambda _, piece: (None, again(wide, *piece)), None, (x, targets))[1]


def scored_losses(scores: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy and hits [B, T] from scores [B, T, V]; 0 and False where the target is -1.

    The target's score is read through a comparison and not a gather: where the words are cut over
    devices, each looks among its own.
    """
    scored = targets != UNSCORED
    words = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    own = jnp.where(words == targets[..., None], scores, 0.0).sum(-1)  # [B, T]
    losses = jax.nn.logsumexp(scores, axis=-1) - own
    hits = jnp.argmax(scores, axis=-1) == targets
    return jnp.where(scored, losses, 0.0), hits & scored
