"""The modules of BERT and its kin: embeddings, post-norm blocks, and what may stand on them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.bert.config import Config
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import (
    Batch,
    check_length,
    positions_of,
    read_first,
    read_masked,
    segments_of,
)
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import Source, attention_over
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, LayerNorm, Leaf, Linear, parameter, split_key
from jaxft.models.tower.tower import Compute, Part, Tower


class Embeddings(nnx.Module):
    """Word + position (+ token-type) vectors, normalised, and projected where they are narrower."""

    def __init__(self, config: Config):
        std, width = config.std, config.word_width
        self.word = Embedding(config.vocab_size, width, "vocab", std)
        self.position = Embedding(config.positions, width, "positions", std, decay=False)
        self.token_type = Embedding(config.types, width, "types", std) if config.types else None
        self.norm = LayerNorm(width, config.eps)
        narrow = width != config.width
        axes = ("words", "embed")
        self.projection = Linear(width, config.width, axes, std) if narrow else None
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


def after_padding(ids: jax.Array, positions: jax.Array, padding: int) -> jax.Array:
    """RoBERTa's positions: [B, T] int32, counted from the padding word's id on.

    A padding word has that id for its position and is not counted, wherever it stands.

    Args:
        ids: [B, T].
        positions: [B or 1, T], each token's place in its own example.
        padding: the padding word's id.
    """
    true = (ids != padding).astype(jnp.int32)
    before = jnp.cumsum(true, axis=1) - true  # words of the row before each place
    first = jnp.arange(ids.shape[1], dtype=jnp.int32) - positions  # where its example begins
    counted = before - jnp.take_along_axis(before, jnp.broadcast_to(first, ids.shape), axis=1)
    return (counted + 1) * true + padding


class Stem(nnx.Module):
    """What comes before the blocks: the embeddings, and which positions see each other."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_positions
        heads, rate = config.heads, config.weights_rate
        self.needs = Needs(heads, heads, config.width // heads, rate)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        kernel = compute.kernel(self.needs, segments.shape)
        return self.embeddings(batch, key), make_mask(segments, kernel=kernel)


class Attention(nnx.Module):
    """Attention over its input or over a source, added to the input and normalised."""

    def __init__(self, config: Config):
        width, std = config.width, config.std
        self.query = Linear(width, width, ("embed", "heads"), std)
        self.key = Linear(width, width, ("embed", "heads"), std)
        self.value = Linear(width, width, ("embed", "heads"), std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.norm = LayerNorm(width, config.eps)
        self.heads = config.heads
        self.weights_rate = config.weights_rate
        self.rate = config.rate

    def __call__(
        self,
        x: jax.Array,
        over: Mask | Source,
        key: jax.Array | None,
        block_key: jax.Array | None,
        cache: KeyValues | None,
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_key, output_key = split_key(key, 2)
        mixed, cache = attention_over(
            over,
            x,
            self.query(x, block_key),
            lambda hidden: (self.key(hidden, block_key), self.value(hidden, block_key)),
            cache,
            heads=self.heads,
            rate=self.weights_rate,
            dropout_key=weights_key,
        )
        return self.norm(x + dropout(self.output(mixed, block_key), self.rate, output_key)), cache


class Mlp(nnx.Module):
    """Two linear maps with an activation between, added to their input and normalised."""

    def __init__(self, config: Config):
        width, inner, std = config.width, config.inner, config.std
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.norm = LayerNorm(width, config.eps)
        self.activation = config.activation
        self.rate = config.rate

    def __call__(
        self, x: jax.Array, key: jax.Array | None, block_key: jax.Array | None
    ) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(x, block_key))  # [B, T, F]
        return self.norm(x + dropout(self.down(inner, block_key), self.rate, key))


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, mask: Mask, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_key, mlp_key = split_key(key, 2)
        x, own = self.attention(x, mask, attention_key, key, cache.own)
        return self.mlp(x, mlp_key, key), BlockCache(own)


class Plain(nnx.Module):
    """The top of a model without a head: the stream as it is."""

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"last_hidden_state": x}


class Encoder(nnx.Module):
    """The top of a plain BertModel: the stream as it is, and the pooled first position."""

    def __init__(self, config: Config):
        self.pooler = Linear(config.width, config.width, ("embed", "pooled"), config.std)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = jnp.tanh(self.pooler(read_first(x, batch)))
        return {"last_hidden_state": x, "pooler_output": pooled}


class Classifier(nnx.Module):
    """Classes of the pooled first position: `logits` [B, C], or [R, S, C] when packed.

    Args:
        config: the model's.
        num_labels: C.
        activation: the name of the pooler's.
        drops_first: whether there is dropout before the pooler too.
    """

    def __init__(self, config: Config, num_labels: int, activation: str, drops_first: bool):
        width, std = config.width, config.std
        self.pooler = Linear(width, width, ("embed", "pooled"), std)
        self.head = Linear(width, num_labels, ("embed", "labels"), std)
        self.rate = config.classifier_rate
        self.activation = activation
        self.drops_first = drops_first

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooler_key, head_key = split_key(key, 2) if self.drops_first else (None, key)
        first = dropout(read_first(x, batch), self.rate, pooler_key)
        pooled = ACTIVATIONS[self.activation](self.pooler(first))
        return {"logits": self.head(dropout(pooled, self.rate, head_key)).astype(jnp.float32)}


class TokenClassifier(nnx.Module):
    """Classes of every token: `logits` [B, T, C]."""

    def __init__(self, config: Config, num_labels: int):
        self.head = Linear(config.width, num_labels, ("embed", "labels"), config.std)
        self.rate = config.token_rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(dropout(x, self.rate, key)).astype(jnp.float32)}


class Predictor(nnx.Module):
    """A transform of the stream, scored against the word embeddings (tied)."""

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
    """Words for every token: `logits` [B, T, V], or [B, M, V] of the masked positions.

    Args:
        config: the model's.
        activation: the name of the transform's.
    """

    def __init__(self, config: Config, activation: str):
        self.head = Predictor(config, activation)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(read_masked(x, batch)).astype(jnp.float32)}


def tower(config: Config, top: nnx.Module) -> dict[str, Tower]:
    """The one tower of a model, with `top` at its end."""
    tied = isinstance(top, MaskedLm)
    ties = {"head/decoder/embedding": "embeddings/word/embedding"} if tied else {}
    blocks = (Part(Block(config)),) * config.blocks
    return {"text": Tower(Part(Stem(config)), blocks, Part(top), ties)}
