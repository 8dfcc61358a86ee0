"""Greedy generation from sources inside a traced program.

So a whole evaluation set is written as it is scored: batch by batch, over any mesh, its padding
left out by the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.generate.choose import FREE, Rule, restrict
from jaxft.models.tower.cache import decode, prefill_from
from jaxft.models.tower.tower import Compute, Params, Tower


def write_greedily(
    decoder: Tower,
    params: Params,
    sources: Mapping[str, jax.Array],
    compute: Compute,
    *,
    start: int,
    end: int,
    most: int,
    first: Rule = FREE,
    later: Rule = FREE,
) -> jax.Array:
    """Generate text from each source, with the end token.

    Args:
        decoder: a tower that reads an encoder.
        params: the flat dict of both.
        sources: what the encoder reads, B rows; with its `trunk` it starts there.
        compute: how to run.
        start: the token that every text begins with.
        end: the token that ends one.
        most: the most tokens of a text, M.
        first, later: the tokens that may come first, and after that.

    Returns:
        [B, M] int32, `end` in all places behind the first.
    """
    rows = len(next(iter(sources.values())))
    begin = jnp.full((rows, 1), start, jnp.int32)
    # The last token is output and never input, so it needs no slot.
    scores, cache, read = prefill_from(decoder, params, sources, begin, most - 1, compute)
    mask = jnp.ones((rows, most), jnp.int32)

    def likeliest(scores: jax.Array, rule: Rule, open_: jax.Array) -> jax.Array:
        return jnp.where(open_, restrict(scores, rule).argmax(-1).astype(jnp.int32), end)

    def going_on(state: Any) -> jax.Array:
        slot, _, token, _ = state
        return (slot < most) & (token != end).any()

    def one_more(state: Any) -> Any:
        slot, texts, token, cache = state
        scores, cache = decode(decoder, params, token, mask, slot, cache, compute, read)
        token = likeliest(scores, later, token != end)
        return slot + 1, texts.at[:, slot].set(token), token, cache

    token = likeliest(scores, first, jnp.ones(rows, bool))
    texts = jnp.full((rows, most), end, jnp.int32).at[:, 0].set(token)
    return jax.lax.while_loop(going_on, one_more, (jnp.int32(1), texts, token, cache))[1]
