"""Beam search, step by step as `transformers` has it. B batch, N beams, M new tokens, V words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxft.models.generate.choose import FREE, Rule, penalize, restrict

WORST = -1e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Beams:
    """Beams that are being extended, and the best finished texts.

    Args:
        running: [B, N, M] int32, and their log-probabilities [B, N].
        whole: [B, N, M] int32, the best first; `scores` [B, N] over the length, `lengths` [B, N].
        finished: [B, N]: whether there is a whole text in that place.
        open: [B]: whether running ones may still become better than the whole.
    """

    running: jax.Array
    running_scores: jax.Array
    whole: jax.Array
    scores: jax.Array
    lengths: jax.Array
    finished: jax.Array
    open: jax.Array


def start(batch: int, beams: int, room: int) -> Beams:
    """Return empty beams, of which only the first counts: the same text is not followed N times."""
    blank = jnp.zeros((batch, beams, room), jnp.int32)
    first = jnp.where(jnp.arange(beams) == 0, 0.0, WORST)
    return Beams(
        running=blank,
        running_scores=jnp.broadcast_to(first, (batch, beams)),
        whole=blank,
        scores=jnp.full((batch, beams), WORST),
        lengths=jnp.zeros((batch, beams), jnp.int32),
        finished=jnp.zeros((batch, beams), bool),
        open=jnp.ones(batch, bool),
    )


def advance(
    beams: Beams,
    scores: jax.Array,
    used: jax.Array | None,
    step: jax.Array,
    limits: jax.Array,
    *,
    ends: tuple[int, ...],
    penalty: float,
    length_penalty: float,
    early_stopping: bool | str,
    rule: Rule = FREE,
) -> tuple[Beams, jax.Array, jax.Array, jax.Array]:
    """Extend each running text by one token.

    Args:
        beams: the state.
        scores: [B N, V] float32, of the next token.
        used: [B N, V] bool, the tokens that are there already; None without a penalty on them.
        step: how many tokens were added before.
        limits: [B], the most tokens of a text.
        ends: tokens that end a text.
        penalty: on tokens that are there already.
        length_penalty, early_stopping: see `settings.Settings`.
        rule: the tokens that may come.

    Returns:
        The new state; the row in the batch that each running text goes on from, and its new
        token, each [B N]; and whether to go on.
    """
    batch, count, _ = beams.running.shape
    words = scores.shape[-1]
    last = step + 1 >= limits  # [B]
    chances = restrict(jax.nn.log_softmax(scores), rule, jnp.repeat(last, count))
    chances = chances if used is None else penalize(chances, used, penalty)
    total = chances.reshape(batch, count, words) + beams.running_scores[..., None]
    # A text beyond its limit is beyond the model's positions, where scores may be no numbers.
    total = jnp.where((step < limits)[:, None, None], total, WORST)
    # Enough that N running ones are left where every end of text is among the best.
    wide = max(2, 1 + len(ends)) * count
    best, places = jax.lax.top_k(total.reshape(batch, count * words), wide)
    parents, tokens = places // words, places % words  # [B, wide]
    texts = _gather(beams.running, parents).at[:, :, step].set(tokens)
    ending = jnp.isin(tokens, jnp.asarray(ends, jnp.int32)) | last[:, None]

    beams = _with_whole(beams, texts, best, ending, step, length_penalty, early_stopping)
    running_scores, chosen = jax.lax.top_k(best + ending * WORST, count)
    reach = limits if early_stopping == "never" and length_penalty > 0 else step + 1
    better = _may_improve(beams, running_scores[:, 0], reach, length_penalty)
    running, open_ = _gather(texts, chosen), beams.open & better & ~last
    beams = replace(beams, running=running, running_scores=running_scores, open=open_)
    full = beams.finished.all() & (early_stopping is True)
    more = beams.open.any() & ~full & ~ending.all()
    rows = jnp.arange(batch)[:, None] * count + _gather(parents, chosen)
    return beams, rows.reshape(-1), _gather(tokens, chosen).reshape(-1), more


def _may_improve(
    beams: Beams, best: jax.Array, reach: jax.Array, length_penalty: float
) -> jax.Array:
    """Return [B] whether running texts may still become better than the worst whole one.

    Args:
        best: [B], the log-probability of each prompt's best running text.
        reach: [B] or a scalar, the length that it may have.
    """
    possible = best / jnp.asarray(reach, jnp.float32) ** length_penalty
    return possible > jnp.where(beams.finished.all(-1), beams.scores.min(-1), WORST)


def _with_whole(
    beams: Beams,
    texts: jax.Array,
    best: jax.Array,
    ending: jax.Array,
    step: jax.Array,
    length_penalty: float,
    early_stopping: bool | str,
) -> Beams:
    """Select the best finished texts among those so far and those that end now.

    Args:
        texts, best, ending: the candidates [B, W, M], their log-probabilities and whether they
            end now [B, W]; those beyond the first N are only there to go on.
    """
    count = beams.scores.shape[1]
    ending &= jnp.arange(ending.shape[1]) < count
    closed = ~beams.open[:, None]
    if early_stopping is True:
        closed |= beams.finished.all(-1, keepdims=True)
    scores = best / jnp.float32(step + 1) ** length_penalty + (closed * WORST + ~ending * WORST)
    lengths = jnp.broadcast_to(step + 1, ending.shape)

    def merged(old: jax.Array, new: jax.Array) -> jax.Array:
        return _gather(jnp.concatenate((old, new), axis=1), chosen)

    chosen = jax.lax.top_k(jnp.concatenate((beams.scores, scores), axis=1), count)[1]
    return replace(
        beams,
        whole=merged(beams.whole, texts),
        scores=merged(beams.scores, scores),
        lengths=merged(beams.lengths, lengths),
        finished=merged(beams.finished, ending),
    )


def _gather(values: jax.Array, places: jax.Array) -> jax.Array:
    """Gather `values` [B, X, ...] at `places` [B, Y]: [B, Y, ...]."""
    places = places.reshape(*places.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, places, axis=1)
