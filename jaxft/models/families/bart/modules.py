"""Modules of BART and its kin: stem, blocks of either norm order, and word scores.

B rows, T positions, D width of the stream, V words.
"""

from __future__ import annotations

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxft.models.families.bart.config import OFFSET, UNBIASED, Config
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import (
    Batch,
    after_padding,
    check_length,
    positions_of,
    segments_of,
    slot_of,
)
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import AttentionMaps, Reading, Source, SourceReader
from jaxft.models.layers.decoder import text_mask
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import (
    Embedding,
    Keys,
    LayerNorm,
    Leaf,
    Linear,
    block_keys,
    parameter,
)
from jaxft.models.tower.tower import Compute

EPS = 1e-5  # of every norm
BASE = 10000.0  # of the sinusoids


@lru_cache(maxsize=8)
def halves_table(count: int, width: int) -> np.ndarray:
    """Return Marian's sinusoids [count, width] float32: sines in the first half, then cosines."""
    pairs = np.arange(width) // 2
    angles = np.arange(count)[:, None] / np.power(BASE, 2 * pairs / width)
    table = np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1)
    return table.astype(np.float32)


@lru_cache(maxsize=8)
def counted_table(count: int, width: int, padding: int) -> np.ndarray:
    """Return sinusoids as fairseq has them, [count, width] float32; that of padding is zero."""
    half = width // 2
    step = np.float32(np.log(BASE) / (half - 1))
    rates = np.exp(np.arange(half, dtype=np.float32) * -step)
    angles = np.arange(count, dtype=np.float32)[:, None] * rates[None]
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.pad(table, ((0, 0), (0, width - 2 * half)))
    table[padding] = 0.0
    return table.astype(np.float32)


def counted_positions(batch: Batch, padding: int) -> jax.Array:
    """Compute M2M-100's positions, [B, T] int32, which count from the padding word's id.

    A padding word has that id for its position and is not counted, unless it is cached: a text
    that is generated counts all that is before, as in `transformers`.

    Args:
        batch: the texts.
        padding: the padding word's id.
    """
    ids, positions = batch["input_ids"], positions_of(batch)
    if slot_of(batch) is not None:
        return (positions + 1) * (ids != padding).astype(jnp.int32) + padding
    return after_padding(ids, positions, padding)


class Stem(nnx.Module):
    """Word and position vectors, the attention mask, and a decoder's source.

    Args:
        config: the model's.
        decodes: whether it is the decoder's.
        source_width: of what a decoder reads; None for that of the stream.
    """

    def __init__(self, config: Config, decodes: bool, source_width: int | None = None):
        own = config.fields
        width, std = own["d_model"], own["init_std"]
        words = config.decoder_vocab_size if decodes else config.vocab_size
        table = Embedding(words, width, "vocab", std)
        self.word: Embedding | None = table if config.shared else None
        self.own_word: Embedding | None = None if config.shared else table
        self.learned, self.counted = config.learned_positions, config.counted_positions
        rows = config.max_positions + (OFFSET if self.learned else 0)
        stored = self.learned or own["stored_positions"]
        position = partial(Embedding, rows, width, "positions", std, decay=False)
        self.position = position() if stored else None
        self.word_norm = LayerNorm(width, EPS) if config.embedding_norm else None
        self.source = SourceReader(width, source_width or width, std) if decodes else None
        self.rate, self.scale = own["dropout"], config.word_scale
        self.max_positions = config.max_positions
        self.padding, self.width = config.pad_token_id, width
        heads = own["decoder_attention_heads" if decodes else "encoder_attention_heads"]
        self.needs = Needs(heads, heads, width // heads, own["attention_dropout"])

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | Reading]:
        table = self.own_word if self.word is None else self.word
        assert table is not None  # one of the two
        words = table(batch["input_ids"])
        x = words * jnp.asarray(self.scale, words.dtype)
        x = x + self.positions(batch).astype(x.dtype)
        x = x if self.word_norm is None else self.word_norm(x)
        x = dropout(x, self.rate, key)
        kernel = partial(compute.kernel, self.needs)
        if self.source is not None:
            mask = text_mask(batch, self.max_positions, None, kernel)
            return x, Reading(mask, self.source(batch))
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        return x, make_mask(segments, kernel=kernel(segments.shape))

    def positions(self, batch: Batch) -> jax.Array:
        """Return the position vectors of a batch, [B or 1, T, D]; sinusoids get no gradient."""
        if self.learned and self.position is not None:
            return self.position(positions_of(batch) + OFFSET)
        if self.position is not None:
            return lax.stop_gradient(self.position(positions_of(batch)))
        # A program holds no more rows than it has positions or slots.
        slot = slot_of(batch)
        count = batch["input_ids" if slot is None else "attention_mask"].shape[1]
        if self.counted:
            rows = counted_table(count + self.padding + 1, self.width, self.padding)
            return jnp.asarray(rows)[counted_positions(batch, self.padding)]
        return jnp.asarray(halves_table(count, self.width))[positions_of(batch)]


class Attention(AttentionMaps):
    """Attention over its input or over a source, added to the input, with a norm."""

    def __init__(self, config: Config, heads: int, source_width: int | None = None):
        own = config.fields
        shape = own["d_model"], heads, own["init_std"], own["attention_dropout"]
        super().__init__(*shape, source_width=source_width)
        self.norm = LayerNorm(own["d_model"], EPS)
        self.rate, self.pre_norm = own["dropout"], config.pre_norm

    def __call__(
        self, x: jax.Array, source: Mask | Source, keys: Keys, cache: KeyValues | None
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_keys, output_keys = keys.split(2)
        read = self.norm(x) if self.pre_norm else x
        out, cache = self.attend(read, source, weights_keys, cache)
        x = x + dropout(out, self.rate, output_keys.own)
        return x if self.pre_norm else self.norm(x), cache


class Mlp(nnx.Module):
    """Two linear maps with an activation between, added to their input, with a norm."""

    def __init__(self, config: Config, inner: int):
        own = config.fields
        width, std = own["d_model"], own["init_std"]
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.norm = LayerNorm(width, EPS)
        self.activation, self.pre_norm = own["activation_function"], config.pre_norm
        self.rate, self.inner_rate = own["dropout"], own["activation_dropout"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        inner_keys, output_keys = keys.split(2)
        read = self.norm(x) if self.pre_norm else x
        inner = ACTIVATIONS[self.activation](self.up(read, keys.block))  # [B, T, F]
        out = self.down(dropout(inner, self.inner_rate, inner_keys.own), keys.block)
        x = x + dropout(out, self.rate, output_keys.own)
        return x if self.pre_norm else self.norm(x)


class Block(nnx.Module):
    """Attention, in a decoder attention over the source, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config, decodes: bool):
        part = "decoder" if decodes else "encoder"
        heads = config.fields[f"{part}_attention_heads"]
        self.attention = Attention(config, heads)
        self.cross = Attention(config, heads, config.cross_width) if decodes else None
        self.mlp = Mlp(config, config.fields[f"{part}_ffn_dim"])

    def __call__(
        self, x: jax.Array, context: Mask | Reading, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, cross_keys, mlp_keys = block_keys(key, 3)
        mask = context.mask if isinstance(context, Reading) else context
        x, own = self.attention(x, mask, attention_keys, cache.own)
        source = cache.source
        if self.cross is not None and isinstance(context, Reading):
            x, source = self.cross(x, context.source, cross_keys, source)
        return self.mlp(x, mlp_keys), BlockCache(own, source)


class WordScores(nnx.Module):
    """Scores of words by their embeddings or a matrix, and a bias that is not trained.

    transformers keeps that bias (`final_logits_bias`) as a buffer. It is zero in most checkpoints.
    """

    def __init__(self, config: Config):
        own, count = config.fields, config.decoder_vocab_size
        width, std = own["d_model"], own["init_std"]
        self.words: Embedding | Linear
        if own["own_lm_head"]:
            self.words = Linear(width, count, ("embed", "vocab"), std, bias=False)
        else:
            self.words = Embedding(count, width, "vocab", std)
        bias = Leaf((1, count), ("one", "vocab"), decay=False)
        self.bias = None if config.model_type in UNBIASED else parameter(bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Score words at each position of the stream: [B, T, D] -> [B, T, V]."""
        score = self.words.scores if isinstance(self.words, Embedding) else self.words
        scores = score(x)
        return scores if self.bias is None else scores + lax.stop_gradient(self.bias[...])
