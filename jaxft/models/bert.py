"""BERT: an encoder of post-norm blocks over word, position and token-type embeddings.

Source: Devlin et al. (2018), https://arxiv.org/abs/1810.04805; the computation follows
`transformers`' `modeling_bert.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.layers import Embedding, LayerNorm, Leaf, Linear, parameter, split_key
from jaxft.models.layers_attention import Mask, attention, make_mask
from jaxft.models.layers_batch import Batch, check_length, positions_of, read_first, segments_of
from jaxft.models.layers_kernels import Needs
from jaxft.models.layers_math import ACTIVATIONS, dropout
from jaxft.models.source_fields import (
    check_activation,
    check_divides,
    check_fields,
    check_sizes,
)
from jaxft.models.transformer import Compute, Part, Tower
from jaxft.models.weights import Name, dense, embedding, norm


@dataclass(frozen=True)
class Config:
    """The numbers of a BERT, under the field names of its config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    initializer_range: float = 0.02

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Config:
        """The config of a config.json.

        Args:
            fields: its content.
            ignore: fields the person has judged harmless (`model.ignore`).

        Raises:
            UserError: a field is missing, unknown, or has a value that is not supported.
        """
        known = cls.__dataclass_fields__
        check_fields(fields, known=list(known), fixed=FIXED, ignore=ignore)
        check_sizes(fields, SIZES)
        config = cls(**{name: fields[name] for name in known if name in fields})
        check_activation("hidden_act", config.hidden_act, ACTIVATIONS)
        heads = config.num_attention_heads
        check_divides("hidden_size", config.hidden_size, heads, "heads")
        return config

    def to_hf(self) -> dict[str, Any]:
        """The fields of config.json that this config owns."""
        return {"model_type": "bert"} | {
            name: getattr(self, name) for name in self.__dataclass_fields__
        }

    def with_dropout(self, rate: float) -> Config:
        """The same config with one dropout rate throughout."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        rates = dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), rate
        )
        return Config(**fields | rates)

    @property
    def max_positions(self) -> int:
        """The most tokens an example may have."""
        return self.max_position_embeddings


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
# Fields that change the computation and are computed for one value only.
FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "tie_word_embeddings": True,
}
# Old multilingual files carry the shape of a pooler that no code ever read.
UNREAD = (
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)

MODEL_TYPES = {
    "bert": {
        None: "BertModel",
        "text_classification": "BertForSequenceClassification",
        "token_classification": "BertForTokenClassification",
        "masked_lm": "BertForMaskedLM",
    }
}

NAMES = (
    *embedding("bert.embeddings.word_embeddings", "embeddings/word"),
    *embedding("bert.embeddings.position_embeddings", "embeddings/position"),
    *embedding("bert.embeddings.token_type_embeddings", "embeddings/token_type"),
    *norm("bert.embeddings.LayerNorm", "embeddings/norm"),
    *dense("bert.encoder.layer.{i}.attention.self.query", "blocks/{i}/attention/query"),
    *dense("bert.encoder.layer.{i}.attention.self.key", "blocks/{i}/attention/key"),
    *dense("bert.encoder.layer.{i}.attention.self.value", "blocks/{i}/attention/value"),
    *dense("bert.encoder.layer.{i}.attention.output.dense", "blocks/{i}/attention/output"),
    *norm("bert.encoder.layer.{i}.attention.output.LayerNorm", "blocks/{i}/attention/norm"),
    *dense("bert.encoder.layer.{i}.intermediate.dense", "blocks/{i}/mlp/up"),
    *dense("bert.encoder.layer.{i}.output.dense", "blocks/{i}/mlp/down"),
    *norm("bert.encoder.layer.{i}.output.LayerNorm", "blocks/{i}/mlp/norm"),
    *dense("bert.pooler.dense", "pooler"),
    *dense("classifier", "head"),
    *dense("cls.predictions.transform.dense", "head/transform"),
    *norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Name("cls.predictions.bias", "head/bias"),
)
PREFIX = "bert."
FRESH = ("pooler/", "head/")
UNUSED = (
    r"bert\.embeddings\.position_ids",
    r"bert\.pooler\..*",
    r"cls\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)


def names(head: str | None, model_type: str) -> tuple[Name, ...]:
    """The name table under a head: `head/bias` is the classifier's or the masked LM's."""
    other = "cls." if head != "masked_lm" else "classifier."
    return tuple(name for name in NAMES if not name.hf.startswith(other))


def canonical(name: str) -> str:
    """A tensor's name as files have it (no prefix, gamma and beta) -> as `NAMES` spells it."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return PREFIX + name if re.match(r"(embeddings|encoder|pooler)\.", name) else name


def exported(name: str, head: str | None, model_type: str) -> str:
    """A tensor's name as `NAMES` spells it -> as the head's architecture saves it."""
    return name.removeprefix(PREFIX) if head is None else name


class Embeddings(nnx.Module):
    """Word + position + token-type vectors, normalised."""

    def __init__(self, config: Config):
        std, width = config.initializer_range, config.hidden_size
        self.word = Embedding(config.vocab_size, width, "vocab", std)
        self.position = Embedding(
            config.max_position_embeddings, width, "positions", std, decay=False
        )
        self.token_type = Embedding(config.type_vocab_size, width, "types", std)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.rate = config.hidden_dropout_prob

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        ids = batch["input_ids"]  # [B, T]
        types = batch.get("token_type_ids", jnp.zeros_like(ids))
        x = self.word(ids) + self.token_type(types) + self.position(positions_of(batch))
        return dropout(self.norm(x), self.rate, key)


class Stem(nnx.Module):
    """What comes before the blocks: the embeddings, and which positions see each other."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_position_embeddings
        heads, rate = config.num_attention_heads, config.attention_probs_dropout_prob
        self.needs = Needs(heads, heads, config.hidden_size // heads, rate)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        kernel = compute.kernel(self.needs, segments.shape)
        return self.embeddings(batch, key), make_mask(segments, kernel=kernel)


class Attention(nnx.Module):
    """Self-attention, added to its input and normalised."""

    def __init__(self, config: Config):
        width, std = config.hidden_size, config.initializer_range
        self.query = Linear(width, width, ("embed", "heads"), std)
        self.key = Linear(width, width, ("embed", "heads"), std)
        self.value = Linear(width, width, ("embed", "heads"), std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.heads = config.num_attention_heads
        self.weights_rate = config.attention_probs_dropout_prob
        self.rate = config.hidden_dropout_prob

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        weights_key, output_key = split_key(key, 2)
        mixed = attention(
            self.query(x),
            self.key(x),
            self.value(x),
            mask,
            heads=self.heads,
            rate=self.weights_rate,
            dropout_key=weights_key,
        )
        return self.norm(x + dropout(self.output(mixed), self.rate, output_key))


class Mlp(nnx.Module):
    """Two linear maps with an activation between, added to their input and normalised."""

    def __init__(self, config: Config):
        width, inner, std = config.hidden_size, config.intermediate_size, config.initializer_range
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.activation = config.hidden_act
        self.rate = config.hidden_dropout_prob

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(x))  # [B, T, F]
        return self.norm(x + dropout(self.down(inner), self.rate, key))


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def __call__(self, x: jax.Array, mask: Mask, key: jax.Array | None) -> jax.Array:
        attention_key, mlp_key = split_key(key, 2)
        return self.mlp(self.attention(x, mask, attention_key), mlp_key)


class Encoder(nnx.Module):
    """The top of a plain BertModel: the stream as it is, and the pooled first position."""

    def __init__(self, config: Config):
        width = config.hidden_size
        self.pooler = Linear(width, width, ("embed", "pooled"), config.initializer_range)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = jnp.tanh(self.pooler(read_first(x, batch)))
        return {"last_hidden_state": x, "pooler_output": pooled}


class Classifier(nnx.Module):
    """The top of a BertForSequenceClassification: `logits` [B, C], or [R, S, C] when packed."""

    def __init__(self, config: Config, num_labels: int):
        width, std = config.hidden_size, config.initializer_range
        self.pooler = Linear(width, width, ("embed", "pooled"), std)
        self.head = Linear(width, num_labels, ("embed", "labels"), std)
        rate = config.classifier_dropout
        self.rate = config.hidden_dropout_prob if rate is None else rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = dropout(jnp.tanh(self.pooler(read_first(x, batch))), self.rate, key)
        return {"logits": self.head(pooled).astype(jnp.float32)}


class TokenClassifier(nnx.Module):
    """The top of a BertForTokenClassification: `logits` [B, T, C]."""

    def __init__(self, config: Config, num_labels: int):
        width, std = config.hidden_size, config.initializer_range
        self.head = Linear(width, num_labels, ("embed", "labels"), std)
        rate = config.classifier_dropout
        self.rate = config.hidden_dropout_prob if rate is None else rate

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(dropout(x, self.rate, key)).astype(jnp.float32)}


class Predictor(nnx.Module):
    """A transform of the stream, scored against the word embeddings (tied)."""

    def __init__(self, config: Config):
        width, std = config.hidden_size, config.initializer_range
        self.transform = Linear(width, width, ("embed", "pooled"), std)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.decoder = Embedding(config.vocab_size, width, "vocab", std)
        self.bias = parameter(Leaf((config.vocab_size,), ("vocab",), decay=False))
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.norm(ACTIVATIONS[self.activation](self.transform(x)))
        return self.decoder.scores(hidden) + self.bias[...]  # [B, T, V]


class MaskedLm(nnx.Module):
    """The top of a BertForMaskedLM: `logits` [B, T, V]."""

    def __init__(self, config: Config):
        self.head = Predictor(config)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(x).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """The one tower of a BERT under a head (a key of `MODEL_TYPES["bert"]`)."""
    ties = {}
    if head == "text_classification":
        top = Part(Classifier(config, num_labels or 2))
    elif head == "token_classification":
        top = Part(TokenClassifier(config, num_labels or 2))
    elif head == "masked_lm":
        top = Part(MaskedLm(config))
        ties = {"head/decoder/embedding": "embeddings/word/embedding"}
    else:
        top = Part(Encoder(config))
    blocks = (Part(Block(config)),) * config.num_hidden_layers
    return {"text": Tower(Part(Stem(config)), blocks, top, ties)}
