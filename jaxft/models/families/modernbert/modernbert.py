"""ModernBERT: pre-norm blocks with rotary positions, gated MLPs and local attention.

Two of three blocks see 64 positions to each side only, and turn positions by a base of their own.
Its decoder (Ettin) sees what lies behind a position, and predicts the next word.

Source: Warner et al. (2024), https://arxiv.org/abs/2412.13663; Weller et al. (2025),
https://arxiv.org/abs/2507.11412; the computation follows `transformers`' `modeling_modernbert.py`
and `modeling_modernbert_decoder.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.modernbert.config import DECODER, Config
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import AttentionOptions, cached_attention, make_mask
from jaxft.models.layers.batch import (
    Batch,
    check_length,
    positions_of,
    read_first,
    read_last,
    read_masked,
    read_mean,
    segments_of,
    slot_of,
)
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.decoder import CausalLm
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
)
from jaxft.models.layers.rotary import RotaryContext, rotary_context, rotate
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, embedding, fused, norm
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

HEADS = (
    *("text_classification", "token_classification", "masked_lm"),
    *("question_answering", "multiple_choice"),
)
MODEL_TYPES = {
    DECODER: architectures("ModernBertDecoder", "text_classification", "causal_lm"),
    "modernbert": architectures("ModernBert", *HEADS),
}

LAYER, BLOCK = "model.layers.{i}", "blocks/{i}"
INWARD = (f"{BLOCK}/attention/query", f"{BLOCK}/attention/key", f"{BLOCK}/attention/value")
SHARED = (
    *embedding("model.embeddings.tok_embeddings", "embeddings/word"),
    *norm("model.embeddings.norm", "embeddings/norm"),
    *norm(f"{LAYER}.attn_norm", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.attn.Wo", f"{BLOCK}/attention/output"),
    *norm(f"{LAYER}.mlp_norm", f"{BLOCK}/mlp/norm"),
    *fused(f"{LAYER}.mlp.Wi", f"{BLOCK}/mlp/gate", f"{BLOCK}/mlp/up"),
    *dense(f"{LAYER}.mlp.Wo", f"{BLOCK}/mlp/down"),
    *norm("model.final_norm", "norm"),
)
# The maps into attention: side by side in one tensor, or one tensor each.
FUSED = fused(f"{LAYER}.attn.Wqkv", *INWARD)
APART = (
    *dense(f"{LAYER}.attn.q_proj", INWARD[0]),
    *dense(f"{LAYER}.attn.k_proj", INWARD[1]),
    *dense(f"{LAYER}.attn.v_proj", INWARD[2]),
)
# A classifier begins with the transform of the pretrained word scores.
CLASSES = (
    *dense("head.dense", "pooler/transform"),
    *norm("head.norm", "pooler/norm"),
    *dense("classifier", "head"),
)


def _word_names(transform: str) -> tuple[Name, ...]:
    """Return the lines of the scores of words, whose transform has another name in each type."""
    return (
        *dense(f"{transform}.dense", "head/transform/transform"),
        *norm(f"{transform}.norm", "head/transform/norm"),
        Name("decoder.bias", "head/bias"),
    )


HEAD_NAMES: HeadLines = {
    "text_classification": CLASSES,
    "token_classification": CLASSES,
    "question_answering": CLASSES,
    "multiple_choice": CLASSES,
    "masked_lm": _word_names("head"),
    "causal_lm": _word_names("lm_head"),
}
UNUSED = (r"head\..*", r"lm_head\..*", r"decoder\..*", r"classifier\..*")
TENSORS = PrefixedNames(
    {"modernbert": (*SHARED, *FUSED), DECODER: (*SHARED, *APART)},
    HEAD_NAMES,
    UNUSED,
    ("pooler/", "head/"),
    prefixes={"model.": "embeddings|layers|final_norm"},
    tied=(("model.embeddings.tok_embeddings.weight", "decoder.weight"),),
)


def layer_norm(config: Config) -> LayerNorm:
    """Build a norm of the stream."""
    own = config.fields
    return LayerNorm(own["hidden_size"], own["norm_eps"], bias=own["norm_bias"])


class Embeddings(nnx.Module):
    """Word vectors, normalized."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        self.word = Embedding(own["vocab_size"], width, "vocab", std)
        self.norm = layer_norm(config)
        self.rate = own["embedding_dropout"]

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        return dropout(self.norm(self.word(batch["input_ids"])), self.rate, key)  # [B, T, D]


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the rotary cosines and sines."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_positions
        self.rotaries, self.causal = config.rotaries, config.causal
        heads = config.fields["num_attention_heads"]
        self.needs = Needs(
            heads=heads,
            groups=heads,
            width=config.fields["hidden_size"] // heads,
            rate=config.fields["attention_dropout"],
            causal=config.causal,
        )

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, RotaryContext]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        kernel = compute.kernel(self.needs, segments.shape)
        mask = make_mask(segments, causal=self.causal, slot=slot_of(batch), kernel=kernel)
        return self.embeddings(batch, key), rotary_context(mask, self.rotaries, positions_of(batch))


class Attention(nnx.Module):
    """Self-attention over the normalized input, added to the input.

    Args:
        config: the model's.
        normed: whether the input is normalized; the first block's is by the embeddings.
    """

    def __init__(self, config: Config, normed: bool):
        own = config.fields
        width, std, bias = own["hidden_size"], own["initializer_range"], own["attention_bias"]
        self.norm = layer_norm(config) if normed else None
        inward = partial(Linear, width, width, ("embed", "heads"), std, bias)
        self.query, self.key, self.value = inward(), inward(), inward()
        self.output = Linear(width, width, ("heads", "embed"), std, bias)
        self.heads, self.rate = own["num_attention_heads"], own["attention_dropout"]

    def __call__(
        self,
        x: jax.Array,
        context: RotaryContext,
        keys: Keys,
        cache: KeyValues | None,
        waves: jax.Array | int,
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_keys, output_keys = keys.split(2)
        normal = x if self.norm is None else self.norm(x)
        turn = context.cosine[waves], context.sine[waves]

        def placed(projection: Linear) -> jax.Array:
            flat = projection(normal, keys.block)
            return rotate(flat.reshape(*flat.shape[:2], self.heads, -1), turn).reshape(flat.shape)

        mixed, cache = cached_attention(
            placed(self.query),
            placed(self.key),
            self.value(normal, keys.block),
            context.mask,
            cache,
            AttentionOptions(self.heads, self.rate, weights_keys.own),
        )
        return x + dropout(self.output(mixed, keys.block), self.rate, output_keys.own), cache


class Mlp(nnx.Module):
    """Two maps up, one of them a gate, and one down, over the normalized input, added to it.

    Source: Shazeer (2020), https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        self.norm = layer_norm(config)
        self.gate = Linear(width, inner, ("embed", "mlp"), std, own["mlp_bias"])
        self.up = Linear(width, inner, ("embed", "mlp"), std, own["mlp_bias"])
        self.down = Linear(inner, width, ("mlp", "embed"), std, own["mlp_bias"])
        self.activation, self.rate = own["hidden_activation"], own["mlp_dropout"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        normal = self.norm(x)
        gate = ACTIVATIONS[self.activation](self.gate(normal, keys.block))
        inner = dropout(gate * self.up(normal, keys.block), self.rate, keys.own)  # [B, T, F]
        return x + self.down(inner, keys.block)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D].

    Where blocks differ, `window` is how many positions this one sees to each side, and `waves`
    which of the rotary embeddings it has.
    """

    def __init__(self, config: Config, normed: bool):
        self.attention = Attention(config, normed)
        self.mlp = Mlp(config)

    def __call__(
        self,
        x: jax.Array,
        context: RotaryContext,
        key: jax.Array | None,
        cache: BlockCache,
        window: jax.Array | int | None = None,
        waves: jax.Array | int = 0,
    ) -> tuple[jax.Array, BlockCache]:
        if window is not None:
            context = replace(context, mask=context.mask.within(window, cache.slot))
        attention_keys, mlp_keys = block_keys(key, 2)
        x, own = self.attention(x, context, attention_keys, cache.own, waves)
        return self.mlp(x, mlp_keys), BlockCache(own)


class Transform(nnx.Module):
    """Linear map with an activation, normalized, before the scores of words or classes."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        self.transform = Linear(width, width, ("embed", "pooled"), std, own["classifier_bias"])
        self.norm = layer_norm(config)
        self.activation = own["classifier_activation"]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(ACTIVATIONS[self.activation](self.transform(x)))


class Bare(nnx.Module):
    """Normalized stream: `last_hidden_state` [B, T, D]."""

    def __init__(self, config: Config):
        self.norm = layer_norm(config)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"last_hidden_state": self.norm(x)}


class Classifier(nnx.Module):
    """Class scores of an example, or of every token.

    They are `logits` [B, C], or [R, S, C] when packed; of tokens [B, T, C]; of answers
    `start_logits` and `end_logits` [B, T].

    Args:
        config: the model's.
        num_labels: C.
        tokens: whether every token is classified.
        spans: whether the classes of a token are the first and the last one of an answer.
    """

    def __init__(self, config: Config, num_labels: int, tokens: bool, spans: bool = False):
        own = config.fields
        self.norm = layer_norm(config)
        self.pooler = Transform(config)
        width, std = own["hidden_size"], own["initializer_range"]
        bias = not config.causal or own["classifier_bias"]
        self.head = Linear(width, num_labels, ("embed", "labels"), std, bias)
        self.rate = own["classifier_dropout"]
        self.pooling = None if tokens else config.pooling
        self.pad_token_id = own.get("pad_token_id")
        self.spans = spans

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        # The norm is of each position by itself: only those that are read are normalized.
        if self.pooling == "cls":
            x = read_first(x, batch)
        elif self.pooling == "last":
            x = read_last(x, batch, self.pad_token_id)
        x = self.norm(x)
        x = read_mean(x, batch) if self.pooling == "mean" else x
        logits = self.head(dropout(self.pooler(x), self.rate, key)).astype(jnp.float32)
        return span_scores(logits) if self.spans else {"logits": logits}


class Words(nnx.Module):
    """Word scores: a transform of the stream, scored against the word embeddings (tied)."""

    def __init__(self, config: Config):
        own = config.fields
        self.transform = Transform(config)
        width, std = own["hidden_size"], own["initializer_range"]
        self.decoder = Embedding(own["vocab_size"], width, "vocab", std)
        bias = Leaf((own["vocab_size"],), ("vocab",), decay=False)
        self.bias = parameter(bias) if own["decoder_bias"] else None

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = self.decoder.scores(self.transform(x))  # [B, T, V]
        return scores if self.bias is None else scores + self.bias[...]


class MaskedLm(nnx.Module):
    """Word scores of every token: `logits` [B, T, V], or [B, M, V] of the masked positions."""

    def __init__(self, config: Config):
        self.norm = layer_norm(config)
        self.head = Words(config)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.norm(read_masked(x, batch))).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a ModernBERT or its decoder under a head."""
    top: nnx.Module
    if head in ("masked_lm", "causal_lm"):
        masked = head == "masked_lm"
        top = MaskedLm(config) if masked else CausalLm(layer_norm(config), Words(config))
        ties = {"head/decoder/embedding": "embeddings/word/embedding"}
    elif head is None:
        top, ties = Bare(config), {}
    else:
        spans = head == "question_answering"
        outputs = {"question_answering": 2, "multiple_choice": 1}.get(head, num_labels or 2)
        top = Classifier(config, outputs, spans or head == "token_classification", spans)
        ties = {}
    count = config.fields["num_hidden_layers"]
    blocks = (Part(Block(config, normed=False)), *[Part(Block(config, normed=True))] * (count - 1))
    stem, numbers = Stem(config), _numbers(config)
    return {"text": Tower(Part(stem), blocks, Part(top), ties, numbers, needs=stem.needs)}


def _numbers(config: Config) -> dict[str, list[int]]:
    """Collect the numbers in which the blocks differ, if any."""
    numbers = {}
    if any(config.windows):
        numbers["window"] = [window or config.max_positions for window in config.windows]
    if len(set(config.waves)) > 1:
        numbers["waves"] = list(config.waves)
    return numbers


FAMILY = Family("modernbert", Config, MODEL_TYPES, TENSORS, towers)
