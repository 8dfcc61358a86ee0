"""Attention of a decoder over what its encoder made of the source.

B rows, T positions, S source positions, D width of the source, H heads, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers.attention import HIDDEN, AttentionOptions, Mask, cached_attention
from jaxft.models.layers.batch import Batch, segments_of
from jaxft.models.layers.cache import KeyValues, attend, split_heads
from jaxft.models.layers.modules import Keys, Linear

# The input of keys and values [B, S, D] -> both, [B, S, H K] each.
Projection = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """Source that every block of a decoder reads.

    Args:
        hidden: what the encoder made of it, [B, S, D]; None where its keys and values are cached.
        mask: which positions of the source each target position sees.
    """

    hidden: jax.Array | None
    mask: Mask


def source_of(batch: Batch) -> Source:
    """Return the source of a batch that `layers.batch.decoder_batch` made.

    A target sees its own source: the one with its segment's number.
    """
    hidden = batch.get("encoder_hidden_states")
    own = segments_of(batch)  # [B, T]
    there = batch.get("encoder_segment_ids")
    if there is None:
        return Source(hidden, Mask(own, None))
    own = own[:, :1] if "slot" in batch else own
    bias = jnp.where(own[:, None, :, None] == there[:, None, None, :], 0.0, HIDDEN)
    return Source(hidden, Mask(own, bias.astype(jnp.float32)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """Context of a decoder's blocks: its mask, and the source."""

    mask: Mask
    source: Source


class SourceReader(nnx.Module):
    """Source of a batch for a decoder's blocks, projected where its width is another.

    Args:
        width: of the decoder.
        source_width: of what the encoder puts out, D.
        std: the standard deviation of a fresh projection.
    """

    def __init__(self, width: int, source_width: int, std: float):
        axes = ("source", "embed")
        self.projection = Linear(source_width, width, axes, std) if source_width != width else None

    def __call__(self, batch: Batch) -> Source:
        source = source_of(batch)
        if self.projection is None or source.hidden is None:
            return source
        return replace(source, hidden=self.projection(source.hidden))


def attention_over(
    source: Mask | Source | None,
    read: jax.Array,
    query: jax.Array,
    project: Projection,
    cache: KeyValues | None,
    options: AttentionOptions,
) -> tuple[jax.Array, KeyValues | None]:
    """Attend over a block's own input, or over a source.

    Args:
        source: the source; or the mask of the block's own input, None where all see all.
        read: the block's input, [B, T, D].
        query: [B, T, H K].
        project: `read`, or the encoded source -> keys and values, [B, S, H K] each.
        cache: of this attention; None where nothing is cached.
        options: heads, dropout and scores.

    Returns:
        [B, T, H K], and the cache with what is new.
    """
    if isinstance(source, Source):
        return cross_attention(query, project, source, cache, options)
    return cached_attention(query, *project(read), source, cache, options)


def cross_attention(
    query: jax.Array,
    project: Projection,
    source: Source,
    cache: KeyValues | None,
    options: AttentionOptions,
) -> tuple[jax.Array, KeyValues | None]:
    """Attend over the source, with dropout on the weights.

    Args:
        query: [B, T, H K].
        project: the encoded source, [B, S, D] -> keys and values, [B, S, H K] each; not called
            where they are cached.
        source: the source.
        cache: keys and values of the source; None where nothing is cached.
        options: heads, dropout and scale.

    Returns:
        [B, T, H K], and the cache, which the source fills once.
    """
    if cache is not None and cache.key is not None:
        width = query.shape[-1] // options.heads
        bias = source.mask.bias
        rows = split_heads(
            query * jnp.asarray(options.scale / math.sqrt(width), query.dtype), width
        )
        bias = jnp.zeros((1, 1, 1, 1)) if bias is None else bias
        mixed = attend(rows, cache, bias, options.soft_cap)
        return mixed.transpose(0, 2, 1, 3).reshape(query.shape), cache
    assert source.hidden is not None  # without it the keys and values are cached
    return cached_attention(query, *project(source.hidden), source.mask, cache, options)


class AttentionMaps(nnx.Module):
    """Query, key, value and output maps of an attention whose width is the stream's.

    Args:
        width: D, which is H K.
        heads: H.
        std: the standard deviation of fresh kernels.
        rate: dropout on the attention weights.
        bias, output_bias: whether the first three maps, and the last, have a bias.
        source_width: of what keys and values are made of; None for that of the stream.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        std: float,
        rate: float,
        bias: bool = True,
        output_bias: bool = True,
        source_width: int | None = None,
    ):
        self.query = Linear(width, width, ("embed", "heads"), std, bias)
        read, axis = (width, "embed") if source_width is None else (source_width, "source")
        self.key = Linear(read, width, (axis, "heads"), std, bias)
        self.value = Linear(read, width, (axis, "heads"), std, bias)
        self.output = Linear(width, width, ("heads", "embed"), std, output_bias)
        self.heads, self.weights_rate = heads, rate

    def attend(
        self,
        x: jax.Array,
        source: Mask | Source | None,
        keys: Keys,
        cache: KeyValues | None = None,
        scale: jax.Array | float = 1.0,
    ) -> tuple[jax.Array, KeyValues | None]:
        """Attend from `x` [B, T, D]: the output [B, T, D], and the cache.

        Args:
            x: the input.
            source, cache: as `attention_over` has them.
            keys: the dropout key of the attention weights, and the block's.
            scale: as `AttentionOptions` has it.
        """
        options = AttentionOptions(self.heads, self.weights_rate, keys.own, scale)
        mixed, cache = attention_over(
            source,
            x,
            self.query(x, keys.block),
            lambda hidden: (self.key(hidden, keys.block), self.value(hidden, keys.block)),
            cache,
            options,
        )
        return self.output(mixed, keys.block), cache
