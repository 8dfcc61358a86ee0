"""Next-token loss over a large vocabulary: B rows, T positions, D width, V words."""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# Scores of one row that are held at once, or nearly: positions x words. In float32 128 MiB a row.
MOST_SCORES = 2**25
MOST_SHARES = 32  # devices that have shared out the words, each of which finds its own in any piece
UNSCORED = -1  # the target of a position that counts for nothing
FILLED = -2  # the place of what is no word, and no target


class Scorer(Protocol):
    """Module that scores the next token: [B, T, D] -> [B, T, V] float32.

    Of its parameters those that hold words have a dimension of V, which no other dimension is;
    without some of their words they give the scores of the others.
    """

    def scores(self, x: jax.Array) -> jax.Array:
        """Score the next token at each position."""


def token_losses(top: Scorer, x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute each position's cross-entropy, and whether its target has the highest score.

    Scores of shape [B, T, V] never exist in full where a row has many of them, neither on the way
    forward nor on the way back: words are taken a piece at a time, and each piece's scores are
    computed again for its gradient. How many pieces depends on T x V alone. So over devices that
    share the head, no more than a piece of it is gathered, or of its gradient added up, at once.

    Args:
        top: what gives the scores; its parameters are in it.
        x: the stream, [B, T, D].
        targets: the right token at each position, [B, T] int32; -1 where none is scored.

    Returns:
        Losses [B, T] float32, 0 where nothing is scored, and hits [B, T] bool.
    """
    words = jax.eval_shape(top.scores, x).shape[-1]
    ratio = x.shape[1] * words / MOST_SCORES
    # Powers of two divide most vocabularies, also when devices have shared them out.
    count = 2 ** round(math.log2(ratio)) if ratio > 1 else 1
    if count == 1:
        return scored_losses(top.scores(x), targets)
    sums, own, highest, places = _in_pieces(top, x, targets, words, count)
    scored = targets != UNSCORED
    losses = jax.nn.logsumexp(sums, axis=0) - own.sum(0)
    first = jnp.where(highest == highest.max(0), places, words).min(0)
    return jnp.where(scored, losses, 0.0), (first == targets) & scored


def _in_pieces(
    top: Scorer, x: jax.Array, targets: jax.Array, words: int, count: int
) -> tuple[jax.Array, ...]:
    """Compute the softmax statistics of each piece of the vocabulary in turn, [pieces, B, T] each.

    Words are dealt out to the pieces a chunk at a time: where devices have shared the words out,
    each has as many of every piece. Given are the logarithm of the sum of exponentials, the
    target's own score (0 where it is in another piece), the highest score, and its word.
    """
    graph, values = nnx.split(top)
    leaves, tree = jax.tree.flatten(values)
    size = -(-words // count)
    shares = math.gcd(size, MOST_SHARES)

    def cut(value: jax.Array) -> jax.Array:
        """Deal out [..., V, ...] into [pieces, ..., V / pieces, ...], padded with zeros."""
        axis = value.shape.index(words)
        spare = [(0, size * count - words if n == axis else 0) for n in range(value.ndim)]
        before, after = value.shape[:axis], value.shape[axis + 1 :]
        dealt = jnp.pad(value, spare).reshape(*before, shares, count, size // shares, *after)
        return jnp.moveaxis(dealt, axis + 1, 0).reshape(count, *before, size, *after)

    holds = [words in leaf.shape for leaf in leaves]
    # Each piece adds to the gradient of what all pieces read, in the type that the scan is given.
    pieces = [cut(leaf) for leaf, split in zip(leaves, holds, strict=True) if split]
    alike = [
        None if split else leaf.astype(jnp.float32)
        for leaf, split in zip(leaves, holds, strict=True)
    ]
    wide = x.astype(jnp.float32)

    def score(alike: Any, wide: Any, piece: Any, places: Any) -> tuple[jax.Array, ...]:
        of = iter(piece)
        own = [next(of) if value is None else value for value in alike]
        narrow = [value.astype(leaf.dtype) for value, leaf in zip(own, leaves, strict=True)]
        module = nnx.merge(graph, jax.tree.unflatten(tree, narrow))
        return _of_piece(module.scores(wide.astype(x.dtype)), targets, places, size * count > words)

    # Nothing is merged between the turns of a scan, so the guard against it would cost for nothing.
    again = jax.checkpoint(score, prevent_cse=False)
    places = cut(jnp.arange(words, dtype=jnp.int32) - FILLED) + FILLED
    _, statistics = lax.scan(
        lambda _, piece: (None, again(alike, wide, *piece)), None, (pieces, places)
    )
    return statistics


def _of_piece(
    scores: jax.Array, targets: jax.Array, places: jax.Array, filled: bool
) -> tuple[jax.Array, ...]:
    """Compute the statistics of one piece, from its scores [B, T, V / pieces] and its words."""
    if filled:
        scores = jnp.where(places == FILLED, -jnp.inf, scores)
    own = jnp.where(places == targets[..., None], scores, 0.0).sum(-1)
    constant = lax.stop_gradient(scores)
    return (
        jax.nn.logsumexp(scores, axis=-1),
        own,
        constant.max(-1),
        places[jnp.argmax(constant, axis=-1)],
    )


def scored_losses(scores: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return cross-entropy and hits [B, T] of scores [B, T, V]; 0 and False at targets of -1.

    The target's score is read through a comparison and not a gather: where the words are cut over
    devices, each looks among its own.
    """
    scored = targets != UNSCORED
    words = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    own = jnp.where(words == targets[..., None], scores, 0.0).sum(-1)  # [B, T]
    losses = jax.nn.logsumexp(scores, axis=-1) - own
    hits = jnp.argmax(scores, axis=-1) == targets
    return jnp.where(scored, losses, 0.0), hits & scored
