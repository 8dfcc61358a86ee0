"""Modules of DeBERTa v2 and v3: embeddings, disentangled attention, convolution and tops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.bert.modules import Mlp, Predictor
from jaxft.models.families.deberta_v2.config import CONTENT_TO_POSITION, POSITION_TO_CONTENT, Config
from jaxft.models.families.deberta_v2.relative import relative_scores
from jaxft.models.layers.attention import AttentionOptions, Mask, attention, make_mask
from jaxft.models.layers.batch import (
    Batch,
    check_length,
    positions_of,
    read_first,
    read_masked,
    segments_of,
)
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout, linear
from jaxft.models.layers.modules import (
    Embedding,
    Keys,
    LayerNorm,
    Leaf,
    Linear,
    block_keys,
    parameter,
    split_key,
)
from jaxft.models.tower.tower import Compute


def norm_of(config: Config) -> LayerNorm:
    """Build a norm of the stream, or of the table of distances."""
    return LayerNorm(config.fields["hidden_size"], config.fields["layer_norm_eps"])


def without_padding(x: jax.Array, segments: jax.Array) -> jax.Array:
    """Set the positions that are padding to 0: x [B, T, D], segments [B, T] -> [B, T, D]."""
    return jnp.where(segments[..., None] > 0, x, 0)


class Embeddings(nnx.Module):
    """Word (+ position + token-type) vectors, projected where they are narrower, normalized."""

    def __init__(self, config: Config):
        own = config.fields
        std, words, width = own["initializer_range"], config.word_width, own["hidden_size"]
        count, types = own["max_position_embeddings"], own["type_vocab_size"]
        placed = own["position_biased_input"]
        self.word = Embedding(own["vocab_size"], words, "vocab", std)
        self.position = Embedding(count, words, "positions", std, decay=False) if placed else None
        self.token_type = Embedding(types, words, "types", std) if types else None
        axes = ("words", "embed")
        self.projection = Linear(words, width, axes, std, False) if words != width else None
        self.norm = norm_of(config)
        self.rate = own["hidden_dropout_prob"]

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        ids = batch["input_ids"]  # [B, T]
        x = self.word(ids)
        if self.position is not None:
            x = x + self.position(positions_of(batch))
        if self.token_type is not None:
            x = x + self.token_type(batch.get("token_type_ids", jnp.zeros_like(ids)))
        x = x if self.projection is None else self.projection(x)
        # The first block's convolution reads neighbors, among them padding.
        return dropout(without_padding(self.norm(x), segments_of(batch)), self.rate, key)


class Distances(nnx.Module):
    """Table of a vector for each bucket of distances, which all blocks read."""

    def __init__(self, config: Config):
        own, self.buckets = config.fields, config.buckets
        shape, std = (2 * self.buckets.span, own["hidden_size"]), own["initializer_range"]
        self.embedding = parameter(Leaf(shape, ("positions", "embed"), std=std, decay=False))

    def __call__(self, length: int) -> jax.Array:
        """Return the rows that texts of `length` positions have a distance for: [R, D]."""
        rows = self.buckets.rows(length)
        return self.embedding[...][rows.min() : rows.max() + 1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Context that every block reads beside the stream.

    Args:
        mask: which positions see which.
        distances: the vectors of distances that texts of this length have, [R, D]; None where
            no relative scores are added.
    """

    mask: Mask
    distances: jax.Array | None


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the vectors of distances."""

    def __init__(self, config: Config):
        own = config.fields
        self.embeddings = Embeddings(config)
        self.distances = Distances(config) if own["relative_attention"] else None
        self.norm = norm_of(config) if config.normalizes_distances else None
        self.max_positions, self.relative = config.max_positions, bool(config.relative)
        heads, rate = own["num_attention_heads"], own["attention_probs_dropout_prob"]
        width = own["hidden_size"] // heads
        self.needs = Needs(heads, heads, width, rate, positions=self.relative)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Context]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        mask = make_mask(segments, kernel=compute.kernel(self.needs, segments.shape))
        distances = None
        if self.distances is not None and self.relative:
            distances = self.distances(segments.shape[1])
            distances = distances if self.norm is None else self.norm(distances)
        return self.embeddings(batch, key), Context(mask, distances)


class Attention(nnx.Module):
    """Attention by content and by distance, added to its input and normalized.

    Args:
        config: the model's.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, std, axes = own["hidden_size"], own["initializer_range"], ("embed", "heads")
        self.query = Linear(width, width, axes, std)
        self.key = Linear(width, width, axes, std)
        self.value = Linear(width, width, axes, std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.norm = norm_of(config)
        # A model without maps of their own for distances has the words' for them.
        apart = () if own["share_att_key"] else config.relative
        keys, queries = (kind in apart for kind in (CONTENT_TO_POSITION, POSITION_TO_CONTENT))
        self.distance_key = Linear(width, width, axes, std) if keys else None
        self.distance_query = Linear(width, width, axes, std) if queries else None
        self.relative, self.buckets = config.relative, config.buckets
        self.heads, self.rate = own["num_attention_heads"], own["hidden_dropout_prob"]
        self.weights_rate = own["attention_probs_dropout_prob"]
        self.scale = 1 / math.sqrt(1 + len(config.directions))

    def __call__(self, x: jax.Array, context: Context, keys: Keys) -> jax.Array:
        weights_keys, distances_keys, output_keys = keys.split(3)
        query, key = self.query(x, keys.block), self.key(x, keys.block)
        positions = None
        if context.distances is not None:
            distances = dropout(context.distances, self.rate, distances_keys.own)
            positions = self._by_distance(query, key, distances, keys.block)
        options = AttentionOptions(
            self.heads, self.weights_rate, weights_keys.own, self.scale, positions=positions
        )
        mixed = attention(query, key, self.value(x, keys.block), context.mask, options)
        out = dropout(self.output(mixed, keys.block), self.rate, output_keys.own)
        return self.norm(x + out)

    def _by_distance(
        self, query: jax.Array, key: jax.Array, distances: jax.Array, block: jax.Array | None
    ) -> jax.Array:
        """Compute the scores of distances, [B, H, T, T], from their vectors [R, D]."""
        buckets = self.buckets.rows(query.shape[1])
        rows = jnp.asarray(buckets - buckets.min())  # [2 T - 1]
        scale = jnp.asarray(self.scale * (query.shape[-1] // self.heads) ** -0.5, query.dtype)

        def of_distances(kind: str, own: Linear | None, shared: Linear) -> jax.Array | None:
            if kind not in self.relative:
                return None
            return ((shared if own is None else own)(distances, block) * scale)[rows]

        keys = of_distances(CONTENT_TO_POSITION, self.distance_key, self.key)
        queries = of_distances(POSITION_TO_CONTENT, self.distance_query, self.query)
        return relative_scores(query, key, keys, queries, self.heads)


class Convolution(nnx.Module):
    """Convolution over neighboring positions of an example, added to a stream and normalized.

    Args:
        config: the model's.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, self.size = own["hidden_size"], own["conv_kernel_size"]
        shape, axes = (width, self.size, width), ("embed", "taps", "mlp")
        self.kernel = parameter(Leaf(shape, axes, std=own["initializer_range"]))
        self.bias = parameter(Leaf((width,), ("mlp",), decay=False))
        self.norm = norm_of(config)
        self.activation, self.rate = own["conv_act"], own["hidden_dropout_prob"]

    def __call__(
        self, x: jax.Array, stream: jax.Array, segments: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Convolve `x` and add it to `stream`: both [B, T, D], with segments [B, T]."""
        length, half = x.shape[1], self.size // 2
        sides = ((0, 0), (half, half))
        x, around = jnp.pad(x, (*sides, (0, 0))), jnp.pad(segments, sides)
        taps = []
        for tap in range(self.size):  # each position's neighbor, if it is of the same example
            inside = around[:, tap : tap + length] == segments
            taps.append(jnp.where(inside[..., None], x[:, tap : tap + length], 0))
        read = jnp.stack(taps, -1).reshape(*stream.shape[:2], -1)  # [B, T, D taps]
        kernel = self.kernel[...].reshape(read.shape[-1], -1)
        out = without_padding(linear(read, kernel, self.bias[...]), segments)
        out = ACTIVATIONS[self.activation](dropout(out, self.rate, key))
        return without_padding(self.norm(stream + out), segments)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D].

    Args:
        config: the model's.
        convolves: whether a convolution of the block's input is added to its output.
    """

    def __init__(self, config: Config, convolves: bool):
        self.attention = Attention(config)
        self.mlp = Mlp(config.bert)
        self.convolution = Convolution(config) if convolves else None

    def __call__(
        self, x: jax.Array, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys, convolution_keys = block_keys(key, 3)
        out = self.mlp(self.attention(x, context, attention_keys), mlp_keys)
        if self.convolution is not None:
            out = self.convolution(x, out, context.mask.segments, convolution_keys.own)
        return out, cache


class Classifier(nnx.Module):
    """Class scores from the pooled first position: `logits` [B, C], or [R, S, C] when packed.

    Args:
        config: the model's.
        num_labels: C.
    """

    def __init__(self, config: Config, num_labels: int):
        own, std = config.fields, config.fields["initializer_range"]
        width = own["hidden_size"]
        self.pooler = Linear(width, width, ("embed", "pooled"), std)
        self.head = Linear(width, num_labels, ("embed", "labels"), std)
        self.activation = own["pooler_hidden_act"]
        self.pooler_rate, self.rate = own["pooler_dropout"], config.bert.classifier_rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooler_key, head_key = split_key(key, 2)
        first = dropout(read_first(x, batch), self.pooler_rate, pooler_key)
        pooled = dropout(ACTIVATIONS[self.activation](self.pooler(first)), self.rate, head_key)
        return {"logits": self.head(pooled).astype(jnp.float32)}


class PretrainedWords(nnx.Module):
    """Word scores by the transform that the published checkpoints were pretrained with."""

    def __init__(self, config: Config):
        self.pretrained = Predictor(config.bert, config.bert.activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pretrained(x)


class MaskedLm(nnx.Module):
    """Word scores of every token: `logits` [B, T, V], or [B, M, V] of the masked positions.

    The computation is the same with `legacy` and without, but not the name of the head: its files
    hold one, the other, or both.
    """

    def __init__(self, config: Config):
        legacy = config.fields["legacy"]
        self.head: Predictor | PretrainedWords
        self.head = (
            Predictor(config.bert, config.bert.activation) if legacy else PretrainedWords(config)
        )

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(read_masked(x, batch)).astype(jnp.float32)}
