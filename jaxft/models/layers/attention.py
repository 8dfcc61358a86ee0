"""Attention: B batch, T positions, S source positions, D width, H heads, K width of a head.

Where queries are grouped, G heads of keys and values serve H = n G heads of queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxft.models.layers.cache import KeyValues, attend, split_heads
from jaxft.models.layers.flash import run_kernel
from jaxft.models.layers.kernels import ATTENTION_OUTPUT, Kernel
from jaxft.models.layers.math import drop, key_words, matmul_precision, soft_capped

HIDDEN = -1e9  # finite, so that no row of scores is ever empty


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Attention mask of a batch: made once by a stem, read by every block.

    Args:
        segments: [B, T] int32: positions with the same number see each other.
        bias: what to add to the scores, [B, 1, T, S] float32: 0 where a position sees another,
            else a large negative number; None where the kernel does not read it.
        causal: a position sees itself and those before it only.
        window: it sees that many positions back, itself included, and as many ahead where the mask
            is not causal; None for all.
        kernel: what computes attention under it; None for XLA.
        together: [B, 1, T, S] bool: which see each other in any window; None for none.
    """

    segments: jax.Array
    bias: jax.Array | None
    causal: bool = field(default=False, metadata={"static": True})
    window: int | None = field(default=None, metadata={"static": True})
    kernel: Kernel | None = field(default=None, metadata={"static": True})
    together: jax.Array | None = None

    def within(self, window: jax.Array | int, slot: jax.Array | None = None) -> Mask:
        """Hide the keys that lie `window` positions away or more as well.

        Args:
            window: how many positions back each sees, itself included; as many ahead where the
                mask is not causal. A kernel is compiled for its window, an int.
            slot: the one new position, where the others are cached; None where all are new.
        """
        mask = self
        if self.kernel is not None:
            assert isinstance(window, int)  # `run_blocks` passes no data where a kernel serves
            nearest = window if self.window is None else min(window, self.window)
            mask = replace(self, window=nearest)
        if mask.bias is None:
            return mask
        near = _near(_distance(mask.bias.shape[-1], slot), window, self.causal)
        near = near if self.together is None else near | self.together
        return replace(mask, bias=jnp.where(near, mask.bias, HIDDEN))


def make_mask(
    segments: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    slot: jax.Array | None = None,
    kernel: Kernel | None = None,
    groups: jax.Array | None = None,
    ahead: bool = False,
) -> Mask:
    """Make the mask under which a position attends only to its own segment.

    Args:
        segments: [B, T] int32: positions with the same number see each other; [B, S] where there
            is a slot.
        causal: a position sees itself and those before it only.
        window: it sees that many positions back, itself included, and as many ahead where the mask
            is not causal; None for all.
        slot: the one position that is new, among S of which those before are cached; None where
            all are new.
        kernel: what will compute attention, as `Compute.kernel` gives it; None for XLA, which
            also serves a slot.
        groups: [B, T] int32: positions of a segment with the same number see each other both
            ways, -1 for none; where there is no slot.
        ahead: of a group only those ahead are seen in any window.
    """
    kernel = kernel if slot is None else None
    if kernel is not None and not kernel.reads_bias:
        return Mask(segments, None, causal, window, kernel)
    own = segments if slot is None else segments[:, slot][:, None]
    visible = own[:, None, :, None] == segments[:, None, None, :]
    distance = _distance(segments.shape[1], slot)
    if causal:
        visible &= distance >= 0
    if window is not None:
        visible &= _near(distance, window, causal)
    together = None if groups is None else _together(segments, groups)
    together = together & (distance < 0) if together is not None and ahead else together
    visible = visible if together is None else visible | together
    bias = jnp.where(visible, 0.0, HIDDEN).astype(jnp.float32)
    return Mask(segments, bias, causal, window, kernel, together)


def _together(segments: jax.Array, groups: jax.Array) -> jax.Array:
    """Return which positions are of one group and one segment: [B, 1, T, T]."""
    same = groups[:, None, :, None] == groups[:, None, None, :]
    same &= segments[:, None, :, None] == segments[:, None, None, :]
    return same & (groups[:, None, :, None] >= 0)


def _distance(length: int, slot: jax.Array | None) -> jax.Array:
    """Return how far each key lies before each query: [T, S] int32, T = 1 where there is a slot."""
    places = jnp.arange(length, dtype=jnp.int32)
    own = places if slot is None else slot[None]
    return own[:, None] - places[None, :]


def _near(distance: jax.Array, window: jax.Array | int, causal: bool) -> jax.Array:
    """Return which keys lie within a window, by how far they lie before each query."""
    return (distance if causal else jnp.abs(distance)) < window


@dataclass(frozen=True)
class AttentionOptions:
    """Options of one attention.

    Args:
        heads: the number of heads H.
        rate: dropout on the attention weights.
        dropout_key: None turns that dropout off.
        scale: of the scores, on top of 1 / sqrt(K).
        soft_cap: bound of the absolute scores; None for none.
        positions: learned position scores to add, [H, T, S], or [B, H, T, S] where the rows
            differ; XLA alone supports them.
    """

    heads: int
    rate: float = 0.0
    dropout_key: jax.Array | None = None
    scale: jax.Array | float = 1.0
    soft_cap: float | None = None
    positions: jax.Array | None = None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None,
    options: AttentionOptions,
) -> jax.Array:
    """Attend with softmax and dropout on its weights.

    Args:
        query: [B, T, H K].
        key, value: [B, S, H K], or [B, S, G K] where head g serves H / G heads of queries.
        mask: which positions see which, None where all see all; it gets no gradient.
        options: heads, dropout and scores.

    Returns:
        [B, T, H K].

    Source: Vaswani et al. (2017), https://arxiv.org/abs/1706.03762; grouped queries: Ainslie
    et al. (2023), https://arxiv.org/abs/2305.13245.
    """
    return cached_attention(query, key, value, mask, None, options)[0]


def cached_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None,
    cache: KeyValues | None,
    options: AttentionOptions,
) -> tuple[jax.Array, KeyValues | None]:
    """Attend as `attention` does, from the new positions over the cached ones too.

    Args:
        query, key, value, mask, options: as `attention` has them; of the new positions.
        cache: keys and values of the positions before; None where nothing is cached.

    Returns:
        [B, T, H K], and the cache with the new positions.
    """
    soft_cap, positions = options.soft_cap, options.positions
    width, shape = query.shape[-1] // options.heads, query.shape
    query = query * jnp.asarray(options.scale / math.sqrt(width), query.dtype)
    query, key, value = (split_heads(x, width) for x in (query, key, value))
    cache = None if cache is None else cache.add(key, value)
    bias = None if mask is None else mask.bias
    if cache is not None and cache.slot is not None:
        assert bias is not None  # no kernel serves a slot
        bias = bias if positions is None else bias + positions
        mixed = attend(query, cache, bias, soft_cap)
    elif mask is not None and mask.kernel is not None:
        causal, window = mask.causal, mask.window
        visibility = mask.segments if bias is None else bias
        mixed = run_kernel(
            mask.kernel,
            query,
            key,
            value,
            visibility,
            causal=causal,
            window=window,
            soft_cap=soft_cap,
        )
    else:
        mixed = _by_xla(query, key, value, bias, options)
    return mixed.transpose(0, 2, 1, 3).reshape(shape), cache


def _by_xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    options: AttentionOptions,
) -> jax.Array:
    """Attend [B, H, T, K] from queries [B, H, T, K] to keys and values [B, H or G, S, K]."""
    heads, dropout_key = query.shape[1], options.dropout_key
    if key.shape[1] != heads:
        key, value = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (key, value))
    words = jnp.zeros(2, jnp.uint32) if dropout_key is None else key_words(dropout_key)
    rate = 0.0 if dropout_key is None else options.rate
    inputs = query, key, value, bias, options.positions, words
    return _attention(*inputs, rate, options.soft_cap, matmul_precision())


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attention(*inputs: Any) -> jax.Array:
    return _attention_forward(*inputs)[0]


def _attention_forward(
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    positions: Any,
    words: Any,
    rate: float,
    soft_cap: float | None,
    precision: Any,
) -> tuple[jax.Array, Any]:
    scores = _scores("bhtk,bhsk->bhts", query, key, precision)
    capped = None
    if soft_cap is not None:
        scores = soft_capped(scores, soft_cap)
        capped = scores.astype(query.dtype)
    scores = scores if bias is None else scores + bias
    scores = scores if positions is None else scores + positions
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    weights = (powers * (1.0 / powers.sum(-1, keepdims=True))).astype(query.dtype)
    dropped = drop(weights, rate, words) if rate else weights
    mixed = jnp.einsum("bhts,bhsk->bhtk", dropped, value, precision=precision)
    out = checkpoint_name(mixed, ATTENTION_OUTPUT)
    placed = None if positions is None else positions[..., :0]  # empty: a shape and a type
    return out, (query, key, value, weights, out, words, capped, placed)


def _attention_backward(
    rate: float, soft_cap: float | None, precision: Any, residuals: Any, d_out: jax.Array
) -> tuple[Any, ...]:
    """Compute the gradients from saved weights, which cost less than new exponentials.

    The softmax's sum over weights is d_out . out, a product [B, H, T, K] instead of one over
    T x S, as in Dao et al. (2022), https://arxiv.org/abs/2205.14135.
    """
    query, key, value, weights, out, words, capped, placed = residuals
    dropped = drop(weights, rate, words) if rate else weights
    d_value = jnp.einsum("bhts,bhtk->bhsk", dropped, d_out, precision=precision)
    d_weights = _scores("bhtk,bhsk->bhts", d_out, value, precision)
    d_weights = drop(d_weights, rate, words) if rate else d_weights
    shared = (d_out.astype(jnp.float32) * out).sum(-1, keepdims=True)
    d_scores = weights * (d_weights - shared)
    d_positions = None
    if placed is not None:
        d_positions = (d_scores.sum(0) if placed.ndim == 3 else d_scores).astype(placed.dtype)
    if capped is not None:  # the slope of tanh
        d_scores *= 1.0 - jnp.square(capped.astype(jnp.float32) / soft_cap)
    d_scores = d_scores.astype(query.dtype)
    d_query = jnp.einsum("bhts,bhsk->bhtk", d_scores, key, precision=precision)
    d_key = jnp.einsum("bhts,bhtk->bhsk", d_scores, query, precision=precision)
    return d_query, d_key, d_value, None, d_positions, None


def _scores(letters: str, left: jax.Array, right: jax.Array, precision: str | None) -> jax.Array:
    return jnp.einsum(letters, left, right, precision=precision, preferred_element_type=jnp.float32)


_attention.defvjp(_attention_forward, _attention_backward)
