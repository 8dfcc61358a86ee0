"""Greedy generation inside a traced program: from sources, or on from prompts.

So a whole evaluation set is written as it is scored: batch by batch, over any mesh, its padding
left out by the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.models.generate.choose import FREE, Rule, restrict
from jaxft.models.tower.cache import Cache, Read, decode, prefill, prefill_from
from jaxft.models.tower.tower import Compute, Params, Tower


@dataclass(frozen=True)
class Limits:
    """Limits of the texts that are generated.

    Args:
        most: the most tokens of a text, M.
        ends: the tokens that end one; the first stands in all places behind.
        first, later: the tokens that may come first, and after that.
    """

    most: int
    ends: Sequence[int]
    first: Rule = FREE
    later: Rule = FREE


def write_greedily(
    decoder: Tower,
    params: Params,
    sources: Mapping[str, jax.Array],
    compute: Compute,
    start: int,
    limits: Limits,
) -> jax.Array:
    """Generate text from each source, with the end token.

    Args:
        decoder: a tower that reads an encoder.
        params: the flat dict of both.
        sources: what the encoder reads, B rows; with its `trunk` it starts there.
        compute: how to run.
        start: the token that every text begins with.
        limits: of the texts.

    Returns:
        [B, M] int32.
    """
    rows = len(next(iter(sources.values())))
    begin = jnp.full((rows, 1), start, jnp.int32)
    # The last token is output and never input, so it needs no slot.
    scores, cache, read = prefill_from(decoder, params, sources, begin, limits.most - 1, compute)
    mask = jnp.ones((rows, limits.most), jnp.int32)
    return _go_on(_Texts(decoder, params, mask, compute, read), scores, cache, limits)


def continue_greedily(
    tower: Tower,
    params: Params,
    prompts: Mapping[str, jax.Array],
    images: Mapping[str, jax.Array],
    compute: Compute,
    limits: Limits,
) -> jax.Array:
    """Generate on from each prompt, with the end token.

    Args:
        tower: a decoder that reads images among its words.
        params: the flat dict of both towers.
        prompts: `input_ids` and `attention_mask` [B, T], padded on the left.
        images: what the image tower reads, B rows; with its `trunk` it starts there.
        compute: how to run.
        limits: of the texts.

    Returns:
        [B, M] int32.
    """
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    scores, cache = prefill(tower, params, ids, mask, limits.most - 1, compute, images)
    mask = jnp.pad(mask, ((0, 0), (0, limits.most - 1)), constant_values=1)
    return _go_on(_Texts(tower, params, mask, compute, None), scores, cache, limits)


@dataclass(frozen=True)
class _Texts:
    """Texts that are under way: what writes them, and the mask [B, S] of their slots."""

    tower: Tower
    params: Params
    mask: jax.Array
    compute: Compute
    read: Read | None

    def next(self, token: jax.Array, slot: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Return the scores behind one more token of each, in this slot."""
        own = self.params, token, self.mask, slot, cache, self.compute, self.read
        return decode(self.tower, *own)


def _go_on(texts: _Texts, scores: jax.Array, cache: Cache, limits: Limits) -> jax.Array:
    """Choose the likeliest tokens, from the scores [B, V] of the first on: [B, M] int32."""
    ends, behind = jnp.asarray(limits.ends), limits.ends[0]
    begun = texts.mask.shape[1] - limits.most  # the slot of the first new token, less 1

    def likeliest(scores: jax.Array, rule: Rule, open_: jax.Array) -> jax.Array:
        return jnp.where(open_, restrict(scores, rule).argmax(-1).astype(jnp.int32), behind)

    def is_open(token: jax.Array) -> jax.Array:
        return (token[:, None] != ends).all(-1)

    def going_on(state: Any) -> jax.Array:
        step, _, open_, _ = state
        return (step < limits.most) & open_.any()

    def one_more(state: Any) -> Any:
        step, written, open_, cache = state
        scores, cache = texts.next(written[:, step - 1], begun + step, cache)
        token = likeliest(scores, limits.later, open_)
        return step + 1, written.at[:, step].set(token), open_ & is_open(token), cache

    token = likeliest(scores, limits.first, jnp.ones(len(scores), bool))
    written = jnp.full((len(scores), limits.most), behind, jnp.int32).at[:, 0].set(token)
    return jax.lax.while_loop(going_on, one_more, (jnp.int32(1), written, is_open(token), cache))[1]
