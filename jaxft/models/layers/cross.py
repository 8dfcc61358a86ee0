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

from jaxft.models.layers.attention import HIDDEN, Mask, cached_attention
from jaxft.models.layers.batch import Batch, segments_of
from jaxft.models.layers.cache import KeyValues, attend, split_heads
from jaxft.models.layers.modules import Linear


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Source:
    """What every block of a decoder reads of the source.

    Args:
        hidden: what the encoder made of it, [B, S, D]; None where its keys and values are cached.
        mask: which positions of the source each target position sees.
    """

    hidden: jax.Array | None
    mask: Mask


def source_of(batch: Batch) -> Source:
    """The source of a batch as `layers.batch.decoder_batch` gives it.

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
    """What every block of a decoder reads beside the stream: its mask, and the source."""

    mask: Mask
    source: Source


class SourceReader(nnx.Module):
    """The source of a batch as a decoder's blocks read it: projected where it is of another width.

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
    what: Mask | Source,
    read: jax.Array,
    query: jax.Array,
    project: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    cache: KeyValues | None,
    *,
    heads: int,
    rate: float,
    dropout_key: jax.Array | None,
    scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, KeyValues | None]:
    """Attend over what a block reads itself (a mask), or over a source.

    Args:
        what: which of the two.
        read: what the block reads, [B, T, D].
        query: [B, T, H K].
        project: `read`, or what is encoded -> keys and values, [B, S, H K] each.
        cache: of this attention; None where nothing is cached.
        heads, rate, dropout_key, scale: as `layers.attention.attention` has them.

    Returns:
        [B, T, H K], and the cache with what is new.
    """
    how = {"heads": heads, "rate": rate, "dropout_key": dropout_key, "scale": scale}
    if isinstance(what, Source):
        return cross_attention(query, project, what, cache, **how)  # type: ignore[arg-type]
    return cached_attention(query, *project(read), what, cache, **how)  # type: ignore[arg-type]


def cross_attention(
    query: jax.Array,
    project: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    source: Source,
    cache: KeyValues | None,
    *,
    heads: int,
    rate: float,
    dropout_key: jax.Array | None,
    scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, KeyValues | None]:
    """Attend over the source, with dropout on the weights.

    Args:
        query: [B, T, H K].
        project: what is encoded, [B, S, D] -> keys and values, [B, S, H K] each; not called where
            they are cached.
        source: what is read.
        cache: keys and values of the source; None where nothing is cached.
        heads, rate, dropout_key, scale: as `layers.attention.attention` has them.

    Returns:
        [B, T, H K], and the cache, which the source fills once.
    """
    if cache is not None and cache.key is not None:
        width = query.shape[-1] // heads
        bias = source.mask.bias
        rows = split_heads(query * jnp.asarray(scale / math.sqrt(width), query.dtype), width)
        mixed = attend(rows, cache, jnp.zeros((1, 1, 1, 1)) if bias is None else bias)
        return mixed.transpose(0, 2, 1, 3).reshape(query.shape), cache
    assert source.hidden is not None  # without it the keys and values are cached
    key, value = project(source.hidden)
    return cached_attention(
        query,
        key,
        value,
        source.mask,
        cache,
        heads=heads,
        rate=rate,
        dropout_key=dropout_key,
        scale=scale,
    )
