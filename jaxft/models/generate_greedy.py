"""Texts from sources inside a traced program: the likeliest token each time.

So a whole evaluation set is written as it is scored: batch by batch, over any mesh, its padding
left out by the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxft.models.transformer import Compute, Params, Tower
from jaxft.models.transformer_cache import decode, prefill_from


def write_greedily(
    decoder: Tower,
    params: Params,
    sources: Mapping[str, jax.Array],
    compute: Compute,
    *,
    start: int,
    end: int,
    most: int,
) -> jax.Array:
    """The tokens that a decoder writes from each source, the end included.

    Args:
        decoder: a tower that reads an encoder.
        params: the flat dict of both.
        sources: what the encoder reads, B rows; with its `trunk` it starts there.
        compute: how to run.
        start: the token that every text begins with.
        end: the token that ends one.
        most: the most tokens of a text, M.

    Returns:
        [B, M] int32, `end` in all places behind the first.
    """
    rows = len(next(iter(sources.values())))
    first = jnp.full((rows, 1), start, jnp.int32)
    scores, cache, read = prefill_from(decoder, params, sources, first, most, compute)
    seen = jnp.ones((rows, most + 1), jnp.int32)
    texts = jnp.full((rows, most), end, jnp.int32)

    def going_on(state):
        step, _, _, open_ = state[:4]
        return (step < most) & open_.any()

    def one_more(state):
        step, texts, scores, open_, cache = state
        token = jnp.where(open_, jnp.argmax(scores, axis=-1).astype(jnp.int32), end)
        texts = texts.at[:, step].set(token)
        scores, cache = decode(decoder, params, token, seen, step + 1, cache, compute, read)
        return step + 1, texts, scores, open_ & (token != end), cache

    state = (jnp.int32(0), texts, scores, jnp.ones(rows, bool), cache)
    return jax.lax.while_loop(going_on, one_more, state)[1]
