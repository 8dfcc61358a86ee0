"""Next-token loss over a large vocabulary: B rows, T positions, D width, V words.

And the load-balancing loss of blocks whose tokens choose among E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# Scores of one row in memory at once, approximately: positions x words. In float32 128 MiB a row.
MOST_SCORES = 2**25
MOST_SHARES = 32  # devices over which words are sharded, each with an equal part of every piece
UNSCORED = -1  # the target of a position that is not scored
FILLED = -2  # the index of padding, which is no word and no target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routed:
    """Use of the experts of one block or of several: sums over their tokens, padding left out.

    Args:
        chosen: how many tokens chose each expert, [E] float32.
        likely: the sum of each expert's probability, [E] float32.
        tokens: how many tokens chose, a float32.
    """

    chosen: jax.Array
    likely: jax.Array
    tokens: jax.Array

    def loss(self) -> jax.Array:
        """Compute the load-balancing loss, a float32; where all experts are used alike, it is K.

        K is the number of experts that a token chooses.

        Source: Fedus et al. (2021), https://arxiv.org/abs/2101.03961, equations 4 to 6, over all
        blocks at once as in transformers' `load_balancing_loss_func`.
        """
        tokens = jnp.maximum(self.tokens, 1.0)
        return len(self.chosen) * jnp.sum((self.chosen / tokens) * (self.likely / tokens))


class Scorer(Protocol):
    """Module that scores the next token: [B, T, D] -> [B, T, V] float32.

    Its parameters with a dimension of V, which no other dimension equals, can be sliced along it to
    score a part of the words.
    """

    def scores(self, x: jax.Array) -> jax.Array:
        """Score the next token at each position."""


def token_losses(
    top: Scorer, x: jax.Array, targets: jax.Array, devices: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Compute each position's cross-entropy, and whether its target has the highest score.

    Large scores [B, T, V] never exist in full, neither in the forward nor in the backward pass:
    the vocabulary is processed in pieces, whose scores are recomputed for their gradient. The
    number of pieces depends on the T x V of a device alone. Where devices shard the head, no more
    than one piece of it is gathered, or of its gradient reduced, at once.

    Args:
        top: the module that scores, bound to its parameters.
        x: the stream, [B, T, D].
        targets: the right token at each position, [B, T] int32; -1 where none is scored.
        devices: over which positions are cut.

    Returns:
        Losses [B, T] float32, 0 where nothing is scored, and hits [B, T] bool.
    """
    words = jax.eval_shape(top.scores, x).shape[-1]
    ratio = x.shape[1] // devices * words / MOST_SCORES
    # Powers of two divide most vocabularies, also those that are sharded.
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

    Words are dealt to the pieces in chunks, so that devices that shard the words have equal parts
    of every piece. Returned are the logarithm of the sum of exponentials, the
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
    # All pieces add to the gradients of shared leaves, in the type that the scan reads: float32.
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

    # XLA merges nothing between the iterations of a scan: prevent_cse would only cost time.
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

    The target's score is selected by a comparison and not a gather: where devices shard the words,
    each compares its own.
    """
    scored = targets != UNSCORED
    words = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    own = jnp.where(words == targets[..., None], scores, 0.0).sum(-1)  # [B, T]
    losses = jax.nn.logsumexp(scores, axis=-1) - own
    hits = jnp.argmax(scores, axis=-1) == targets
    return jnp.where(scored, losses, 0.0), hits & scored
