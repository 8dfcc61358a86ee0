"""ALBERT: a BERT whose blocks are one block, repeated, over narrower embeddings.

The block has one set of parameters and so one depth: it is frozen or trained as a whole, and its
gradient is the sum over its repetitions.

Source: Lan et al. (2019), https://arxiv.org/abs/1909.11942; the computation follows
`transformers`' `modeling_albert.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.bert import config as bert_config
from jaxft.models.families.bert.modules import (
    Attention,
    Classifier,
    Encoder,
    MaskedLm,
    Mlp,
    SpanScorer,
    Stem,
    TokenClassifier,
)
from jaxft.models.families.bert.names import (
    ALL_HEADS,
    FIRST,
    BertNames,
    embedding_names,
    tied_names,
)
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import Mask
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.modules import Keys, block_keys
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {"albert": architectures("Albert", *ALL_HEADS)}
FIELDS: dict[str, Any] = {
    **{name: value for name, value in bert_config.BERT.items() if name != "classifier_dropout"},
    "embedding_size": 128,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
}
LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
NAMES = (
    *embedding_names("albert."),
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
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": dense("classifier", "head"),
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
TENSORS = BertNames(
    *({"albert": NAMES}, HEAD_NAMES, UNUSED, ("pooler/", "head/"), {"albert.": FIRST}),
    tied=tied_names("albert.", "predictions."),
)


class Config(bert_config.Config):
    """Config of an ALBERT: a BERT's, where `blocks` counts the repetitions of the one block."""

    DEFAULTS: ClassVar = {"albert": FIELDS}
    SIZES: ClassVar = {"albert": bert_config.SIZES["electra"]}
    RATES: ClassVar = {"albert": [name for name in FIELDS if "dropout" in name]}
    # One group of one block is what all published checkpoints have.
    FIXED: ClassVar = {**bert_config.Config.FIXED, "num_hidden_groups": 1, "inner_group_num": 1}
    # Of a search for architectures, in the published files.
    UNREAD: ClassVar = (
        *bert_config.Config.UNREAD,
        *("down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"),
    )


class RepeatedBlock(nnx.Module):
    """Attention, then MLP, again and again with the same parameters: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config, drops=False)
        self.times = config.blocks

    def __call__(
        self, x: jax.Array, mask: Mask, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        def once(x: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            own_key = None if key is None else jax.random.fold_in(key, number)
            (attention_keys,) = block_keys(own_key, 1)
            x, _ = self.attention(x, mask, attention_keys, None)
            return self.mlp(x, Keys(None, own_key)), None

        x, _ = jax.lax.scan(once, x, jnp.arange(self.times))
        return x, cache


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of an ALBERT under a head."""
    top: nnx.Module
    if head in ("text_classification", "multiple_choice"):
        outputs = 1 if head == "multiple_choice" else num_labels or 2
        top = Classifier(config, outputs, "tanh", drops_first=False)
    elif head == "question_answering":
        top = SpanScorer(config)
    elif head == "token_classification":
        top = TokenClassifier(config, num_labels or 2)
    else:
        top = MaskedLm(config, config.activation) if head else Encoder(config)
    ties = {"head/decoder/embedding": "embeddings/word/embedding"} if head == "masked_lm" else {}
    return {"text": Tower(Part(Stem(config)), (Part(RepeatedBlock(config)),), Part(top), ties)}


FAMILY = Family("albert", Config, MODEL_TYPES, TENSORS, towers)
