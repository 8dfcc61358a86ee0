"""EuroBERT: Llama's blocks as an encoder, whose positions see those after them too.

Source: Boizard et al. (2025), https://arxiv.org/abs/2503.05500; the computation follows
`transformers`' `modeling_eurobert.py`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.llama.config import Config
from jaxft.models.families.llama.llama import tower_of
from jaxft.models.families.llama.names import TIED, lines_of
from jaxft.models.family import Family, architectures
from jaxft.models.layers.batch import Batch, read_first, read_masked, read_mean
from jaxft.models.layers.decoder import Bare, TokenClasses
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import Embedding, Leaf, Linear, RMSNorm, parameter
from jaxft.models.tower.tower import Part, Tower
from jaxft.models.weights.names import Name, dense
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

HEADS = ("text_classification", "token_classification", "masked_lm")
MODEL_TYPES = {"eurobert": architectures("EuroBert", *HEADS)}
HEAD_NAMES: HeadLines = {
    "text_classification": (*dense("dense", "pooler"), *dense("classifier", "head")),
    "token_classification": dense("classifier", "head"),
    "masked_lm": (
        Name("lm_head.weight", "head/kernel", transpose=True),
        Name("lm_head.bias", "head/bias"),
    ),
}
UNUSED = (r"(dense|classifier|lm_head)\..*",)
TENSORS = PrefixedNames(
    {"eurobert": lines_of("eurobert")},
    HEAD_NAMES,
    UNUSED,
    ("pooler/", "head/"),
    prefixes={"model.": "embed_tokens|layers|norm"},
    tied=TIED,
)


class Classes(Bare):
    """Class scores of an example: `logits` [B, C], or [R, S, C] when packed.

    The first token is classified (`bos`), the mean of all (`mean`), or every token, whose scores
    are averaged (`late`).

    Args:
        norm: of the stream.
        config: the model's.
        num_labels: C.
    """

    def __init__(self, norm: RMSNorm, config: Config, num_labels: int):
        super().__init__(norm)
        width, std = config.fields["hidden_size"], config.fields["initializer_range"]
        self.pooler = Linear(width, width, ("embed", "pooled"), std)
        self.head = Linear(width, num_labels, ("embed", "labels"), std)
        self.pooling = config.fields["classifier_pooling"]

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = self.finished(read_first(x, batch) if self.pooling == "bos" else x)
        x = read_mean(x, batch) if self.pooling == "mean" else x
        logits = self.head(ACTIVATIONS["gelu"](self.pooler(x))).astype(jnp.float32)
        return {"logits": read_mean(logits, batch) if self.pooling == "late" else logits}


class TiedWords(nnx.Module):
    """Word scores against the word embeddings: [..., D] -> [..., V]."""

    def __init__(self, config: Config):
        own = config.fields
        words, std = own["vocab_size"], own["initializer_range"]
        self.decoder = Embedding(words, own["hidden_size"], "vocab", std)
        bias = Leaf((words,), ("vocab",), decay=False)
        self.bias = parameter(bias) if own["mlp_bias"] else None

    def __call__(self, x: jax.Array) -> jax.Array:
        scores = self.decoder.scores(x)
        return scores if self.bias is None else scores + self.bias[...]


class MaskedLm(Bare):
    """Word scores of every token: `logits` [B, T, V], or [B, M, V] of the masked positions.

    Args:
        norm: of the stream.
        head: from the stream to words.
    """

    def __init__(self, norm: RMSNorm, head: Linear | TiedWords):
        super().__init__(norm)
        self.head = head

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.finished(read_masked(x, batch))).astype(jnp.float32)}


def _top(config: Config, head: str | None, num_labels: int | None) -> nnx.Module:
    """Build the top of a EuroBERT under a head."""
    own = config.fields
    width, std = own["hidden_size"], own["initializer_range"]
    norm = RMSNorm(width, own["rms_norm_eps"])
    linear = partial(Linear, width, std=std)
    if head == "text_classification":
        return Classes(norm, config, num_labels or 2)
    if head == "token_classification":
        return TokenClasses(norm, linear(num_labels or 2, ("embed", "labels")), rate=0.0)
    if head is None:
        return Bare(norm)
    if own["tie_word_embeddings"]:
        return MaskedLm(norm, TiedWords(config))
    return MaskedLm(norm, linear(own["vocab_size"], ("embed", "vocab"), bias=own["mlp_bias"]))


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a EuroBERT under a head."""
    tied = head == "masked_lm" and config.fields["tie_word_embeddings"]
    ties = {"head/decoder/embedding": "embeddings/word/embedding"} if tied else {}
    return {"text": tower_of(config, Part(_top(config, head, num_labels)), ties)}


FAMILY = Family("eurobert", Config, MODEL_TYPES, TENSORS, towers)
