"""Modules of BERT and its kin: embeddings, post-norm blocks, and tops."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.bert.config import Config
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import (
    Batch,
    after_padding,
    check_length,
    positions_of,
    read_first,
    read_masked,
    segments_of,
)
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import AttentionMaps, Reading, Source, SourceReader
from jaxft.models.layers.decoder import CausalLm, text_mask
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
    span_scores,
    split_key,
)
from jaxft.models.tower.tower import Compute, Part, Tower


class Embeddings(nnx.Module):
    """Word + position (+ token-type) vectors, normalized, and projected where the config says."""

    def __init__(self, config: Config):
        std, width = config.std, config.word_width
        self.word = Embedding(config.vocab_size, width, "vocab", std)
        self.position = Embedding(config.positions, width, "positions", std, decay=False)
        self.token_type = Embedding(config.types, width, "types", std) if config.types else None
        self.norm = LayerNorm(width, config.eps)
        axes = ("words", "embed")
        self.projection = Linear(width, config.width, axes, std) if config.projects else None
        self.rate = config.rate
        self.padding = config.padding

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        ids = batch["input_ids"]  # [B, T]
        x = self.word(ids)
        if self.token_type is not None:
            x = x + self.token_type(batch.get("token_type_ids", jnp.zeros_like(ids)))
        places = positions_of(batch)
        places = places if self.padding is None else after_padding(ids, places, self.padding)
        x = dropout(self.norm(x + self.position(places)), self.rate, key)
        return x if self.projection is None else self.projection(x)


class Stem(nnx.Module):
    """Embeddings and the mask of the blocks, and the source of a decoder.

    Args:
        config: the model's.
        source_width: the width of the source that the blocks of a decoder read; None in an encoder.
    """

    def __init__(self, config: Config, source_width: int | None = None):
        self.embeddings = Embeddings(config)
        width, std = config.width, config.std
        self.source = None if source_width is None else SourceReader(width, source_width, std)
        self.max_positions = config.max_positions
        heads, rate = config.heads, config.weights_rate
        self.needs = Needs(heads, heads, width // heads, rate)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | Reading]:
        kernel = partial(compute.kernel, self.needs)
        if self.source is not None:
            mask = text_mask(batch, self.max_positions, None, kernel)
            return self.embeddings(batch, key), Reading(mask, self.source(batch))
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        served = kernel(segments.shape)
        return self.embeddings(batch, key), make_mask(segments, kernel=served)


class Attention(AttentionMaps):
    """Attention over its input or over a source, added to the input and normalized."""

    def __init__(self, config: Config):
        super().__init__(config.width, config.heads, config.std, config.weights_rate)
        self.norm = LayerNorm(config.width, config.eps)
        self.rate = config.rate

    def __call__(
        self, x: jax.Array, source: Mask | Source, keys: Keys, cache: KeyValues | None
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_keys, output_keys = keys.split(2)
        out, cache = self.attend(x, source, weights_keys, cache)
        return self.norm(x + dropout(out, self.rate, output_keys.own)), cache


class Mlp(nnx.Module):
    """Two linear maps with an activation between, added to their input and normalized.

    Args:
        config: the model's.
        drops: whether there is dropout before the sum.
    """

    def __init__(self, config: Config, drops: bool = True):
        width, inner, std = config.width, config.inner, config.std
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.norm = LayerNorm(width, config.eps)
        self.activation = config.activation
        self.rate = config.rate if drops else 0.0

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(x, keys.block))  # [B, T, F]
        return self.norm(x + dropout(self.down(inner, keys.block), self.rate, keys.own))


class Block(nnx.Module):
    """Attention, in a decoder attention over the source, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config, decodes: bool = False):
        self.attention = Attention(config)
        self.cross = Attention(config) if decodes else None
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, context: Mask | Reading, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        if isinstance(context, Mask):
            attention_keys, mlp_keys = block_keys(key, 2)
            x, own = self.attention(x, context, attention_keys, cache.own)
            return self.mlp(x, mlp_keys), BlockCache(own)
        assert self.cross is not None  # only a decoder has a source
        attention_keys, cross_keys, mlp_keys = block_keys(key, 3)
        x, own = self.attention(x, context.mask, attention_keys, cache.own)
        x, source = self.cross(x, context.source, cross_keys, cache.source)
        return self.mlp(x, mlp_keys), BlockCache(own, source)


class Plain(nnx.Module):
    """Top of a model without a head: the stream as it is."""

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"last_hidden_state": x}


class Encoder(nnx.Module):
    """Top of a bare BertModel: the stream, and the pooled first position."""

    def __init__(self, config: Config):
        self.pooler = Linear(config.width, config.width, ("embed", "pooled"), config.std)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = jnp.tanh(self.pooler(read_first(x, batch)))
        return {"last_hidden_state": x, "pooler_output": pooled}


class Classifier(nnx.Module):
    """Class scores from the pooled first position: `logits` [B, C], or [R, S, C] when packed.

    Args:
        config: the model's.
        num_labels: C.
        activation: the name of the pooler's.
        drops_first: whether there is dropout before the pooler too.
        rate: of the dropout; None for that of the config's classifier.
    """

    def __init__(
        self,
        config: Config,
        num_labels: int,
        activation: str,
        drops_first: bool,
        rate: float | None = None,
    ):
        width, std = config.width, config.std
        self.pooler = Linear(width, width, ("embed", "pooled"), std)
        self.head = Linear(width, num_labels, ("embed", "labels"), std)
        self.rate = config.classifier_rate if rate is None else rate
        self.activation = activation
        self.drops_first = drops_first

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooler_key, head_key = split_key(key, 2) if self.drops_first else (None, key)
        first = dropout(read_first(x, batch), self.rate, pooler_key)
        pooled = ACTIVATIONS[self.activation](self.pooler(first))
        return {"logits": self.head(dropout(pooled, self.rate, head_key)).astype(jnp.float32)}


class TokenClassifier(nnx.Module):
    """Class scores of every token: `logits` [B, T, C]."""

    def __init__(self, config: Config, num_labels: int):
        self.head = Linear(config.width, num_labels, ("embed", "labels"), config.std)
        self.rate = config.token_rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(dropout(x, self.rate, key)).astype(jnp.float32)}


class SpanScorer(nnx.Module):
    """Scores of an answer's first and last token: `start_logits` and `end_logits` [B, T].

    Args:
        config: the model's.
        rate: of the dropout before them.
    """

    def __init__(self, config: Config, rate: float = 0.0):
        self.head = Linear(config.width, 2, ("embed", "labels"), config.std)
        self.rate = rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return span_scores(self.head(dropout(x, self.rate, key)))


class Predictor(nnx.Module):
    """Word scores: a transform of the stream, scored against the word embeddings (tied)."""

    def __init__(self, config: Config, activation: str):
        words = config.word_width
        self.transform = Linear(config.width, words, ("embed", "pooled"), config.std)
        self.norm = LayerNorm(words, config.eps)
        self.decoder = Embedding(config.vocab_size, words, "vocab", config.std)
        self.bias = parameter(Leaf((config.vocab_size,), ("vocab",), decay=False))
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.norm(ACTIVATIONS[self.activation](self.transform(x)))
        return self.decoder.scores(hidden) + self.bias[...]  # [B, T, V]


class MaskedLm(nnx.Module):
    """Word scores of every token: `logits` [B, T, V], or [B, M, V] of the masked positions.

    Args:
        config: the model's.
        activation: the name of the transform's.
    """

    def __init__(self, config: Config, activation: str):
        self.head = Predictor(config, activation)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(read_masked(x, batch)).astype(jnp.float32)}


def tower(config: Config, top: nnx.Module) -> dict[str, Tower]:
    """Build the one tower of a model that ends in `top`."""
    tied = isinstance(top, MaskedLm)
    ties = {"head/decoder/embedding": "embeddings/word/embedding"} if tied else {}
    blocks = (Part(Block(config)),) * config.blocks
    stem = Stem(config)
    return {"text": Tower(Part(stem), blocks, Part(top), ties, needs=stem.needs)}


def reading_tower(config: Config, source_width: int) -> Tower:
    """Build a BERT that scores next tokens and reads a source of that width in every block."""
    stem = Stem(config, source_width)
    return Tower(
        Part(stem),
        (Part(Block(config, decodes=True)),) * config.blocks,
        Part(CausalLm(None, Predictor(config, config.activation))),
        {"head/decoder/embedding": "embeddings/word/embedding"},
        needs=stem.needs,
    )
