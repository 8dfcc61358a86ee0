"""MPNet: RoBERTa's embeddings and heads over blocks that add T5's learned scores of distances.

One table of scores serves all blocks. It is the encoder of many sentence embeddings.

Source: Song et al. (2020), https://arxiv.org/abs/2004.09297; the computation follows
`transformers`' `modeling_mpnet.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from jaxft.models.families.bert.modules import (
    Classifier,
    Embeddings,
    Encoder,
    MaskedLm,
    Mlp,
    SpanScorer,
    TokenClassifier,
)
from jaxft.models.families.bert.names import ALL_HEADS, FIRST, BertNames, tied_names
from jaxft.models.families.mpnet.config import BUCKETS, FURTHEST, Config
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import AttentionOptions, Mask, attention, make_mask
from jaxft.models.layers.batch import Batch, check_length, segments_of
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.relative import RelativePositions
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import HeadLines

MODEL_TYPES = {"mpnet": architectures("MPNet", *ALL_HEADS)}
LAYER, BLOCK = "mpnet.encoder.layer.{i}", "blocks/{i}"
NAMES = (
    *embedding("mpnet.embeddings.word_embeddings", "embeddings/word"),
    *embedding("mpnet.embeddings.position_embeddings", "embeddings/position"),
    *norm("mpnet.embeddings.LayerNorm", "embeddings/norm"),
    *embedding("mpnet.encoder.relative_attention_bias", "positions"),
    *dense(f"{LAYER}.attention.attn.q", f"{BLOCK}/attention/query"),
    *dense(f"{LAYER}.attention.attn.k", f"{BLOCK}/attention/key"),
    *dense(f"{LAYER}.attention.attn.v", f"{BLOCK}/attention/value"),
    *dense(f"{LAYER}.attention.attn.o", f"{BLOCK}/attention/output"),
    *norm(f"{LAYER}.attention.LayerNorm", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.intermediate.dense", f"{BLOCK}/mlp/up"),
    *dense(f"{LAYER}.output.dense", f"{BLOCK}/mlp/down"),
    *norm(f"{LAYER}.output.LayerNorm", f"{BLOCK}/mlp/norm"),
)
HEAD_NAMES: HeadLines = {
    None: dense("mpnet.pooler.dense", "pooler"),
    "text_classification": (
        *dense("classifier.dense", "pooler"),
        *dense("classifier.out_proj", "head"),
    ),
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
    "multiple_choice": (*dense("mpnet.pooler.dense", "pooler"), *dense("classifier", "head")),
    "masked_lm": (
        *dense("lm_head.dense", "head/transform"),
        *norm("lm_head.layer_norm", "head/norm"),
        Name("lm_head.bias", "head/bias"),
    ),
}
UNUSED = (
    r"mpnet\.embeddings\.position_ids",
    r"mpnet\.pooler\..*",
    r"lm_head\..*",
    r"classifier\..*",
    r"qa_outputs\..*",
)
TENSORS = BertNames(
    *({"mpnet": NAMES}, HEAD_NAMES, UNUSED, ("pooler/", "head/"), {"mpnet.": FIRST}),
    tied=tied_names("mpnet.", "lm_head."),
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Context that every block reads beside the stream.

    Args:
        mask: which positions see which.
        positions: what their distance adds to the scores, [H, T, T].
    """

    mask: Mask
    positions: jax.Array


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the scores of distances."""

    def __init__(self, config: Config):
        own = config.fields
        heads, std = own["num_attention_heads"], own["initializer_range"]
        self.embeddings = Embeddings(config.bert)
        self.positions = RelativePositions(BUCKETS, FURTHEST, heads, std, both_ways=True)
        self.max_positions = config.max_positions
        width, rate = own["hidden_size"] // heads, own["attention_probs_dropout_prob"]
        self.needs = Needs(heads, heads, width, rate, positions=True)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Context]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        mask = make_mask(segments, kernel=compute.kernel(self.needs, segments.shape))
        positions = self.positions(segments.shape[1])
        return self.embeddings(batch, key), Context(mask, positions)


class Attention(nnx.Module):
    """Attention with scores of distances, added to its input and normalized."""

    def __init__(self, config: Config):
        own = config.fields
        width, std, axes = own["hidden_size"], own["initializer_range"], ("embed", "heads")
        self.query = Linear(width, width, axes, std)
        self.key = Linear(width, width, axes, std)
        self.value = Linear(width, width, axes, std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.heads, self.rate = own["num_attention_heads"], own["hidden_dropout_prob"]
        self.weights_rate = own["attention_probs_dropout_prob"]

    def __call__(self, x: jax.Array, context: Context, keys: Keys) -> jax.Array:
        weights_keys, output_keys = keys.split(2)
        mixed = attention(
            self.query(x, keys.block),
            self.key(x, keys.block),
            self.value(x, keys.block),
            context.mask,
            AttentionOptions(
                self.heads, self.weights_rate, weights_keys.own, positions=context.positions
            ),
        )
        return self.norm(x + dropout(self.output(mixed, keys.block), self.rate, output_keys.own))


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config.bert)

    def __call__(
        self, x: jax.Array, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        return self.mlp(self.attention(x, context, attention_keys), mlp_keys), cache


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of an MPNet under a head."""
    top: nnx.Module
    ties = {}
    if head == "text_classification":
        top = Classifier(config.bert, num_labels or 2, "tanh", drops_first=True)
    elif head == "token_classification":
        top = TokenClassifier(config.bert, num_labels or 2)
    elif head == "question_answering":
        top = SpanScorer(config.bert)
    elif head == "multiple_choice":
        top = Classifier(config.bert, 1, "tanh", drops_first=False)
    elif head is None:
        top = Encoder(config.bert)
    else:
        top, ties = MaskedLm(config.bert, "gelu"), {"head/decoder/embedding": WORDS}
    blocks = (Part(Block(config)),) * config.fields["num_hidden_layers"]
    stem = Stem(config)
    return {"text": Tower(Part(stem), blocks, Part(top), ties, needs=stem.needs)}


WORDS = "embeddings/word/embedding"
FAMILY = Family("mpnet", Config, MODEL_TYPES, TENSORS, towers)
