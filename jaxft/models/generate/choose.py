"""Selection of the next token from scores: the most likely, or sampled. B batch, V words.

Each function is `transformers`' logits processor of that name; `choose` applies them in its
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

NEVER = -jnp.inf


class Rule(NamedTuple):
    """Tokens that may come at one step.

    Attributes:
        never: tokens that may not.
        forced: if any, one of these comes.
        last: if any, one of these comes where a text reaches its limit, whatever else is forced.
    """

    never: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    last: tuple[int, ...] = ()


FREE = Rule()


def choose(
    scores: jax.Array,
    used: jax.Array | None,
    key: jax.Array | None,
    numbers: Mapping[str, jax.Array | None],
    top_k: int,
    rule: Rule = FREE,
    last: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Choose the next token of each text.

    Args:
        scores: [B, V] float32.
        used: [B, V] bool, the tokens that are there already; None without a penalty on them.
        key: samples the tokens; None for the most likely.
        numbers: `repetition_penalty`, `temperature`, `top_p` and `min_p`; None for without.
        top_k: draw from so many of the most likely; 0 for all.
        rule: the tokens that may come.
        last: [B] bool, whether a text reaches its limit with this one; None for none does.

    Returns:
        Tokens [B] int32, and `used` with them.
    """
    penalty = numbers["repetition_penalty"]
    if used is not None and penalty is not None:
        scores = penalize(scores, used, penalty)
    scores = restrict(scores, rule, last)
    if key is None:
        tokens = scores.argmax(-1)
    else:
        tokens = jax.random.categorical(key, warp(scores, numbers, top_k))
    if used is not None:
        used = used.at[jnp.arange(len(tokens)), tokens].set(True)
    return tokens.astype(jnp.int32), used


def restrict(scores: jax.Array, rule: Rule, last: jax.Array | None = None) -> jax.Array:
    """Set scores [B, V] of tokens that may not come to minus infinity; forced ones score 0.

    Args:
        scores: float32.
        rule: the tokens that may come.
        last: [B] bool, whether a text reaches its limit with this one; None for none does.
    """

    def only(tokens: tuple[int, ...]) -> jax.Array:
        return jnp.full_like(scores, NEVER).at[..., jnp.asarray(tokens)].set(0.0)

    chosen = scores.at[..., jnp.asarray(rule.never)].set(NEVER) if rule.never else scores
    chosen = only(rule.forced) if rule.forced else chosen
    if not rule.last or last is None:
        return chosen
    return jnp.where(last[:, None], only(rule.last), chosen)


def penalize(scores: jax.Array, used: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Lower the scores [..., V] of tokens that are already `used`.

    Source: Keskar et al. (2019), https://arxiv.org/abs/1909.05858.
    """
    lower = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(used, lower, scores)


def warp(scores: jax.Array, numbers: Mapping[str, jax.Array | None], top_k: int) -> jax.Array:
    """Divide scores [B, V] by the temperature, and set excluded tokens to minus infinity.

    Args:
        scores: [B, V] float32.
        numbers: `temperature`, `top_p` and `min_p`; None for without.
        top_k: how many of the most likely are kept; 0 for all.

    Source: top-p: Holtzman et al. (2020), https://arxiv.org/abs/1904.09751; min-p: Nguyen et
    al. (2024), https://arxiv.org/abs/2407.01082.
    """
    words = scores.shape[-1]
    if numbers["temperature"] is not None:
        scores = scores / numbers["temperature"]
    count = min(top_k, words) if top_k else words
    top_p, min_p = numbers["top_p"], numbers["min_p"]
    if count < words or top_p is not None:
        best = jax.lax.top_k(scores, count)[0]  # [B, kept], from the highest
        scores = jnp.where(scores < best[:, -1:], NEVER, scores)
        if top_p is not None:
            scores = jnp.where(scores < _least_of_top_p(best, top_p), NEVER, scores)
    if min_p is not None:
        probabilities = jax.nn.softmax(scores)
        least = min_p * probabilities.max(-1, keepdims=True)
        scores = jnp.where(probabilities < least, NEVER, scores)
    return scores


def _least_of_top_p(best: jax.Array, top_p: jax.Array) -> jax.Array:
    """Return the lowest score within top-p, [B, 1], of scores [B, count] in descending order.

    Added up from the least likely, as transformers does: a token goes where it and all less
    likely ones have no more than 1 - top_p together.
    """
    below = jnp.cumsum(jax.nn.softmax(best)[:, ::-1], axis=-1)[:, ::-1]  # itself and those lower
    count = (below > 1 - top_p).sum(-1, keepdims=True)
    return jnp.take_along_axis(best, jnp.maximum(count, 1) - 1, axis=-1)
