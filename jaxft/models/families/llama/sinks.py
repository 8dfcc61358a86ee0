"""Attention with a sink in each head: a learned score that joins the softmax and has no value.

B batch, T positions, S keys, H heads, G heads of keys and values, K width of a head.

Source: OpenAI (2025), https://arxiv.org/abs/2508.10925; Xiao et al. (2023),
https://arxiv.org/abs/2309.17453; the computation follows `transformers`' `modeling_gpt_oss.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxft.models.layers.attention import AttentionOptions, Mask, attention
from jaxft.models.layers.cache import KeyValues, attend, split_heads


def attention_with_sinks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    cache: KeyValues | None,
    options: AttentionOptions,
    sinks: jax.Array,
) -> tuple[jax.Array, KeyValues | None]:
    """Attend as `cached_attention` does, with a sink in each head.

    Args:
        query, key, value, mask, cache, options: as of `cached_attention`.
        sinks: [H].

    Returns:
        [B, T, H K], and the cache with the new positions.
    """
    width = query.shape[-1] // options.heads
    if cache is not None:
        cache = cache.add(split_heads(key, width), split_heads(value, width))
        if cache.slot is not None:
            assert mask.bias is not None  # no kernel serves a slot
            scaled = query * jnp.asarray(options.scale / math.sqrt(width), query.dtype)
            mixed = attend(split_heads(scaled, width), cache, mask.bias, sinks=sinks)
            return mixed.transpose(0, 2, 1, 3).reshape(query.shape), cache
    return _beside_zero(query, key, value, mask, options, sinks), cache


def _beside_zero(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    options: AttentionOptions,
    sinks: jax.Array,
) -> jax.Array:
    """Attend to one key more, of zeros, whose score is the sink and whose value is zero."""
    assert mask.bias is not None  # no kernel serves learned scores
    (key, value), length = (_one_more(x, 1) for x in (key, value)), key.shape[1]
    scores = jnp.zeros((options.heads, query.shape[1], length), jnp.float32)
    column = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None, None], (*scores.shape[:2], 1))
    positions = jnp.concatenate([scores, column], -1)  # [H, T, S + 1]
    mask = replace(mask, bias=_one_more(mask.bias, 3))
    return attention(query, key, value, mask, replace(options, positions=positions))


def _one_more(x: jax.Array, axis: int) -> jax.Array:
    """Append a zero along an axis."""
    return jnp.pad(x, [(0, int(dimension == axis)) for dimension in range(x.ndim)])
