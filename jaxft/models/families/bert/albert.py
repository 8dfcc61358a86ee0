"""ALBERT: a BERT whose blocks are one block, repeated, over narrower embeddings.

The block has one set of parameters and so one depth: it is frozen or trained as a whole, and its
gradient is the sum over its repetitions.

Source: Lan et al. (2019), https://arxiv.org/abs/1909.11942; the computation follows
`transformers`' `modeling_albert.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.bert import config as bert_config
from jaxft.models.families.bert.modules import (
    Attention,
    Classifier,
    Encoder,
    MaskedLm,
    Stem,
    TokenClassifier,
)
from jaxft.models.families.bert.names import FIRST, BertNames
from jaxft.models.family import Family
from jaxft.models.layers.attention import Mask
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import LayerNorm, Linear, block_keys
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {
    "albert": {
        None: "AlbertModel",
        "text_classification": "AlbertForSequenceClassification",
        "token_classification": "AlbertForTokenClassification",
        "masked_lm": "AlbertForMaskedLM",
    }
}
FIELDS: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": None,
    "embedding_size": 128,
    "type_vocab_size": 2,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
SIZES = tuple(FIELDS)[:7]
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
NAMES = (
    *embedding("albert.embeddings.word_embeddings", "embeddings/word"),
    *embedding("albert.embeddings.position_embeddings", "embeddings/position"),
    *embedding("albert.embeddings.token_type_embeddings", "embeddings/token_type"),
    *norm("albert.embeddings.LayerNorm", "embeddings/norm"),
    *dense("albert.encoder.embedding_hidden_mapping_in", "embeddings/projection"),
    *dense(f"{LAYER}.attention.query", "blocks/0/attention/query"),
    *dense(f"{LAYER}.attention.key", "blocks/0/attention/key"),
    *dense(f"{LAYER}.attention.value", "blocks/0/attention/value"),
    *dense(f"{LAYER}.attention.dense", "blocks/0/attention/output"),
    *norm(f"{LAYER}.attention.LayerNorm", "blocks/0/attention/norm"),
    *dense(f"{LAYER}.ffn", "blocks/0/mlp/up"),
    *dense(f"{LAYER}.ffn_output", "blocks/0/mlp/down"),
    *norm(f"{LAYER}.full_layer_layer_norm", "blocks/0/mlp/norm"),
    *dense("albert.pooler", "pooler"),
)
HEAD_NAMES: HeadLines = {
    "text_classification": dense("classifier", "head"),
    "token_classification": dense("classifier", "head"),
    "masked_lm": (
        *dense("predictions.dense", "head/transform"),
        *norm("predictions.LayerNorm", "head/norm"),
        Name("predictions.bias", "head/bias"),
    ),
}
UNUSED = (
    r"albert\.embeddings\.position_ids",
    r"albert\.pooler\..*",
    r"predictions\..*",
    r"sop_classifier\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
TENSORS = BertNames({"albert": NAMES}, HEAD_NAMES, UNUSED, ("pooler/", "head/"), {"albert.": FIRST})


class Config(bert_config.Config):
    """The numbers of an ALBERT, as those of a BERT; `blocks` is how often its block is repeated."""

    # One group of one block is what all published checkpoints have.
    FIXED = bert_config.FIXED | {"num_hidden_groups": 1, "inner_group_num": 1}

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, FIELDS, SIZES, ignore)
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        return cls(
            fields["model_type"],
            own,
            vocab_size=own["vocab_size"],
            max_positions=own["max_position_embeddings"],
            width=own["hidden_size"],
            blocks=own["num_hidden_layers"],
            heads=own["num_attention_heads"],
            inner=own["intermediate_size"],
            word_width=own["embedding_size"],
            types=own["type_vocab_size"],
            padding=None,
            activation=own["hidden_act"],
            eps=own["layer_norm_eps"],
            std=own["initializer_range"],
            rate=own["hidden_dropout_prob"],
            weights_rate=own["attention_probs_dropout_prob"],
            classifier_rate=own["classifier_dropout_prob"],
            token_rate=own["classifier_dropout_prob"],
        )

    def with_dropout(self, rate: float) -> Self:
        return self.from_hf({**self.to_hf(), **dict.fromkeys(RATES, rate)})


class Mlp(nnx.Module):
    """Two linear maps with an activation between, added to their input and normalised.

    Unlike BERT's it has no dropout.
    """

    def __init__(self, config: Config):
        width, inner, std = config.width, config.inner, config.std
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.norm = LayerNorm(width, config.eps)
        self.activation = config.activation

    def __call__(self, x: jax.Array, block_key: jax.Array | None) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(x, block_key))  # [B, T, F]
        return self.norm(x + self.down(inner, block_key))


class RepeatedBlock(nnx.Module):
    """Attention, then MLP, again and again with the same parameters: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)
        self.times = config.blocks

    def __call__(
        self, x: jax.Array, mask: Mask, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        def once(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            own_key = None if key is None else jax.random.fold_in(key, number)
            (attention_keys,) = block_keys(own_key, 1)
            x, _ = self.attention(x, mask, attention_keys, None)
            return self.mlp(x, own_key), None

        x, _ = jax.lax.scan(once, x, jnp.arange(self.times))
        return x, cache


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """The one tower of an ALBERT under a head (a key of `MODEL_TYPES["albert"]`)."""
    top: nnx.Module
    if head == "text_classification":
        top = Classifier(config, num_labels or 2, "tanh", drops_first=False)
    elif head == "token_classification":
        top = TokenClassifier(config, num_labels or 2)
    else:
        top = MaskedLm(config, config.activation) if head else Encoder(config)
    ties = {"head/decoder/embedding": "embeddings/word/embedding"} if head == "masked_lm" else {}
    return {"text": Tower(Part(Stem(config)), (Part(RepeatedBlock(config)),), Part(top), ties)}


FAMILY = Family("albert", Config, MODEL_TYPES, TENSORS, towers)
