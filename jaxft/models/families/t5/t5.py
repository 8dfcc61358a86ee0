"""T5 and mT5: an encoder and a decoder of pre-norm blocks with learned relative positions.

The first T5 has one map up in its MLPs and scores words against their own embeddings, scaled; v1.1,
Flan-T5 and mT5 have a gate and, as a rule, a matrix of their own for the scores. Attention
scores are not scaled: the initial values contain the factor.

Source: Raffel et al. (2020), https://arxiv.org/abs/1910.10683; Shazeer (2020),
https://arxiv.org/abs/2002.05202; Xue et al. (2021), https://arxiv.org/abs/2010.11934; the
computation follows `transformers`' `modeling_t5.py` and `modeling_mt5.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.t5.config import Config
from jaxft.models.family import Family, architectures, run_pair_or_encoder
from jaxft.models.layers.attention import AttentionOptions, Mask, make_mask
from jaxft.models.layers.batch import (
    Batch,
    decoder_input,
    repeated_input,
    segments_of,
    slot_of,
)
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import Source, attention_over, source_of
from jaxft.models.layers.decoder import EndClasses, OnStream, Spans, TokenClasses
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.loss import token_losses
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, Keys, Linear, RMSNorm, block_keys
from jaxft.models.layers.relative import RelativePositions
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, embedding
from jaxft.models.weights.tensor_names import HeadLines, TensorNames

HEAD_FILE_NAME = "lm_head.weight"
PREFIX = "transformer."
CLASSES, POOLER = "decoder/head/head", "decoder/head/pooler"
TAGS, TAG_CLASSES = "token_classification", "encoder/head/head"  # of the encoder alone
ENCODER = "encoder"  # alone, with nothing behind its norm
READS_TWICE = ("text_classification", "question_answering")  # heads whose decoder has the source
MODEL_TYPES = {
    name: architectures(stem, *READS_TWICE, TAGS)
    | {ENCODER: f"{stem}EncoderModel", "seq2seq": f"{stem}ForConditionalGeneration"}
    for name, stem in {"t5": "T5", "mt5": "MT5"}.items()
}


def _kernels(hf: str, ours: str, parts: Mapping[str, str]) -> Iterable[Name]:
    """Yield the lines of linear maps without a bias, from Hugging Face's name of each to ours."""
    for theirs, own in parts.items():
        yield Name(f"{hf}.{theirs}.weight", f"{ours}/{own}/kernel", transpose=True)


def _tower_names(tower: str, mlp: int) -> Iterable[Name]:
    """Yield the lines of a tower whose blocks have their MLP as layer `mlp`."""
    hf, ours = f"{tower}.block.{{i}}.layer", f"{tower}/blocks/{{i}}"
    first = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield Name(first, f"{tower}/positions/embedding")
    parts = {"attention": (0, "SelfAttention"), "cross": (1, "EncDecAttention")}
    for own, (layer, theirs) in parts.items():
        if layer < mlp:
            maps = {"q": "query", "k": "key", "v": "value", "o": "output"}
            yield from _kernels(f"{hf}.{layer}.{theirs}", f"{ours}/{own}", maps)
            yield Name(f"{hf}.{layer}.layer_norm.weight", f"{ours}/{own}/norm/scale")
    maps = {"wi": "inner", "wi_0": "gate", "wi_1": "up", "wo": "down"}
    yield from _kernels(f"{hf}.{mlp}.DenseReluDense", f"{ours}/mlp", maps)
    yield Name(f"{hf}.{mlp}.layer_norm.weight", f"{ours}/mlp/norm/scale")
    yield Name(f"{tower}.final_layer_norm.weight", f"{tower}/norm/scale")


NAMES = (
    *embedding("shared", "encoder/word"),
    *_tower_names("encoder", 1),
    *_tower_names("decoder", 2),
)
HEAD_NAMES: HeadLines = {
    "seq2seq": (Name(HEAD_FILE_NAME, "decoder/head/kernel", transpose=True),),
    "text_classification": (
        *dense("classification_head.dense", POOLER),
        *dense("classification_head.out_proj", CLASSES),
    ),
    "question_answering": dense("qa_outputs", CLASSES),
    TAGS: dense("classifier", TAG_CLASSES),
}
UNUSED = (
    r"(encoder|decoder)\.embed_tokens\.weight",  # the shared ones again, in old files
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    r"lm_head\.weight",
    r"(classification_head|qa_outputs|classifier)\..*",
)


class T5Names(TensorNames):
    """Tensor names of T5, which has a prefix under two heads only."""

    def ties(self, head: str | None, config: Any) -> Sequence[tuple[str, str]]:
        """Return the shared words and each tower's, which are the same under any head."""
        del config
        return self.tied[:1] if head in (TAGS, ENCODER) else self.tied

    def canonical(self, name: str) -> str:
        return name.removeprefix(PREFIX)

    def exported(self, name: str, head: str | None, model_type: str) -> str:
        prefixed = head in ("text_classification", TAGS)
        own = name.startswith(("classification_head.", "classifier."))
        return PREFIX + name if prefixed and not own else name


TENSORS = T5Names(
    dict.fromkeys(MODEL_TYPES, NAMES),
    HEAD_NAMES,
    UNUSED,
    fresh=(f"{CLASSES}/", f"{POOLER}/", f"{TAG_CLASSES}/"),
    unread=dict.fromkeys((TAGS, ENCODER), (r"decoder\..*",)),
    tied=[("shared.weight", f"{tower}.embed_tokens.weight") for tower in ("encoder", "decoder")],
)


def infer_fields(fields: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Correct what a config.json says of the word scores by the tensors of the checkpoint.

    transformers writes that every T5 ties them, and decides by the file.

    Args:
        fields: config.json.
        tensors: the names of the checkpoint's tensors.
    """
    tied = fields.get("tie_word_embeddings")
    scaled = fields.get("scale_decoder_outputs", tied is not False)
    own = {"scale_decoder_outputs": scaled, "tie_word_embeddings": HEAD_FILE_NAME not in tensors}
    return {**fields, **own}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Context that every block reads beside the stream.

    Args:
        mask: which positions see which.
        positions: what their distance adds to the scores, [H, T, S].
        source: a decoder's source; None in an encoder.
    """

    mask: Mask
    positions: jax.Array
    source: Source | None


class Stem(nnx.Module):
    """Stem: word vectors, attention mask, relative position scores, and a decoder's source."""

    def __init__(self, config: Config, decodes: bool):
        own = config.fields
        width, heads, factor = own["d_model"], own["num_heads"], own["initializer_factor"]
        self.word = Embedding(own["vocab_size"], width, "vocab", factor)
        buckets, furthest = (f"relative_attention_{n}" for n in ("num_buckets", "max_distance"))
        std = factor * width**-0.5
        table = own[buckets], own[furthest], heads, std
        self.positions = RelativePositions(*table, both_ways=not decodes)
        self.rate, self.decodes = own["dropout_rate"], decodes
        self.needs = Needs(heads, heads, own["d_kv"], self.rate, positions=True)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Context]:
        segments, slot = segments_of(batch), slot_of(batch)
        kernel = compute.kernel(self.needs, segments.shape)
        mask = make_mask(segments, causal=self.decodes, slot=slot, kernel=kernel)
        positions = self.positions(segments.shape[1], slot)
        source = source_of(batch) if self.decodes else None
        words = dropout(self.word(batch["input_ids"]), self.rate, key)
        return words, Context(mask, positions, source)


class Attention(nnx.Module):
    """Attention of the normalized input over itself or over a source, added to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, self.heads = own["d_model"], own["num_heads"]
        inner, factor = self.heads * own["d_kv"], own["initializer_factor"]
        std = factor * width**-0.5
        self.norm = RMSNorm(width, own["layer_norm_epsilon"])
        # Scores are not divided by sqrt(K): the queries' initial values contain that factor.
        self.query = Linear(width, inner, ("embed", "heads"), std * own["d_kv"] ** -0.5, False)
        self.key = Linear(width, inner, ("embed", "heads"), std, False)
        self.value = Linear(width, inner, ("embed", "heads"), std, False)
        self.output = Linear(inner, width, ("heads", "embed"), factor * inner**-0.5, False)
        self.rate, self.scale = own["dropout_rate"], math.sqrt(own["d_kv"])

    def __call__(
        self,
        x: jax.Array,
        source: Mask | Source,
        keys: Keys,
        cache: KeyValues | None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_keys, output_keys = keys.split(2)
        normal = self.norm(x)
        mixed, cache = attention_over(
            source,
            normal,
            self.query(normal, keys.block),
            lambda hidden: (self.key(hidden, keys.block), self.value(hidden, keys.block)),
            cache,
            AttentionOptions(
                self.heads, self.rate, weights_keys.own, self.scale, positions=positions
            ),
        )
        return x + dropout(self.output(mixed, keys.block), self.rate, output_keys.own), cache


class Mlp(nnx.Module):
    """One map up or two, one of them a gate, and one down, over the normalized input, added."""

    def __init__(self, config: Config):
        own = config.fields
        width, wide, factor = own["d_model"], own["d_ff"], own["initializer_factor"]
        up = width, wide, ("embed", "mlp"), factor * width**-0.5, False
        self.norm = RMSNorm(width, own["layer_norm_epsilon"])
        self.inner = None if config.gated else Linear(*up)
        self.gate = Linear(*up) if config.gated else None
        self.up = Linear(*up) if config.gated else None
        self.down = Linear(wide, width, ("mlp", "embed"), factor * wide**-0.5, False)
        self.activation, self.rate = config.activation, own["dropout_rate"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        inner_keys, output_keys = keys.split(2)
        normal, act = self.norm(x), ACTIVATIONS[self.activation]
        if self.inner is not None:
            inner = act(self.inner(normal, keys.block))  # [B, T, F]
        else:
            assert self.gate is not None and self.up is not None  # noqa: PT018 - one fact
            inner = act(self.gate(normal, keys.block)) * self.up(normal, keys.block)
        out = self.down(dropout(inner, self.rate, inner_keys.own), keys.block)
        return x + dropout(out, self.rate, output_keys.own)


class Block(nnx.Module):
    """Attention, in a decoder attention over the source, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config, decodes: bool):
        self.attention = Attention(config)
        self.cross = Attention(config) if decodes else None
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, cross_keys, mlp_keys = block_keys(key, 3)
        x, own = self.attention(x, context.mask, attention_keys, cache.own, context.positions)
        source = cache.source
        if self.cross is not None:
            assert context.source is not None  # a decoder's context has one
            x, source = self.cross(x, context.source, cross_keys, source)
        return self.mlp(x, mlp_keys), BlockCache(own, source)


class Bare(nnx.Module):
    """Normalized stream: `last_hidden_state` [B, T, D]."""

    def __init__(self, config: Config):
        self.norm = RMSNorm(config.fields["d_model"], config.fields["layer_norm_epsilon"])
        self.rate = config.fields["dropout_rate"]

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"last_hidden_state": dropout(self.norm(x), self.rate, key)}


class Words(nnx.Module):
    """Scores of the next token: `logits` [B, T, V]; or, where the batch has `targets`, losses.

    These are as `layers.decoder.CausalLm` has them.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, words = own["d_model"], own["vocab_size"]
        factor = own["initializer_factor"]
        self.norm = RMSNorm(width, own["layer_norm_epsilon"])
        self.head: Embedding | Linear
        if own["tie_word_embeddings"]:
            self.head = Embedding(words, width, "vocab", factor)
        else:
            self.head = Linear(width, words, ("embed", "vocab"), factor, False)
        self.rate, self.scale = own["dropout_rate"], config.scale

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = dropout(self.norm(x), self.rate, key)
        if "targets" in batch:
            losses, hits = token_losses(self, x, batch["targets"])
            return {"losses": losses, "hits": hits}
        return {"logits": self.scores(x)}

    def scores(self, x: jax.Array) -> jax.Array:
        """Score words at each position of the normalized stream: [B, T, D] -> [B, T, V] float32."""
        x = x * jnp.asarray(self.scale, x.dtype)
        score = self.head.scores if isinstance(self.head, Embedding) else self.head
        return score(x).astype(jnp.float32)


def _on_stream(config: Config, head: EndClasses | Spans | TokenClasses) -> OnStream:
    """Build a head that reads the normalized stream."""
    own = config.fields
    norm = RMSNorm(own["d_model"], own["layer_norm_epsilon"])
    return OnStream(norm, head, own["dropout_rate"])


def _top(config: Config, head: str | None, num_labels: int | None) -> nnx.Module:
    """Build the decoder's top under a head."""
    own = config.fields
    width, std = own["d_model"], own["initializer_factor"] * own["d_model"] ** -0.5
    if head == "text_classification":
        pooler = Linear(width, width, ("embed", "pooled"), std)
        classes = Linear(width, num_labels or 2, ("embed", "labels"), std)
        rate = own["classifier_dropout"]
        return _on_stream(config, EndClasses(None, pooler, classes, config.end_token_id, rate))
    if head == "question_answering":
        return _on_stream(config, Spans(None, Linear(width, 2, ("embed", "labels"), std)))
    return Words(config) if head == "seq2seq" else Bare(config)


def _encoder(config: Config, top: nnx.Module) -> Tower:
    """Build the encoder under a top."""
    blocks = (Part(Block(config, decodes=False)),) * config.fields["num_layers"]
    stem = Stem(config, decodes=False)
    return Tower(Part(stem), blocks, Part(top), prefix="encoder/", needs=stem.needs)


def _tags(config: Config, num_labels: int | None) -> nnx.Module:
    """Build the top of an encoder that classifies every token."""
    own = config.fields
    width, std = own["d_model"], own["initializer_factor"] * own["d_model"] ** -0.5
    classes = Linear(width, num_labels or 2, ("embed", "labels"), std)
    return _on_stream(config, TokenClasses(None, classes, own["classifier_dropout"]))


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the encoder, and the decoder that reads its output and shares its word embeddings."""
    if head == TAGS:
        return {"encoder": _encoder(config, _tags(config, num_labels))}
    if head == ENCODER:
        return {"encoder": _encoder(config, Bare(config))}
    own, encoder = config.fields, _encoder(config, Bare(config))
    block = Part(Block(config, decodes=True))
    shared = dict.fromkeys(("word/embedding", "head/embedding"), "encoder/word/embedding")
    stem = Stem(config, decodes=True)
    repeated = partial(repeated_input, start=config.start_token_id)
    decoder = Tower(
        Part(stem),
        (block,) * own["num_decoder_layers"],
        Part(_top(config, head, num_labels)),
        prefix="decoder/",
        reads=encoder,
        borrowed=shared,
        needs=stem.needs,
        input_of=repeated if head in READS_TWICE else decoder_input,
    )
    return {"encoder": encoder, "decoder": decoder}


FAMILY = Family(
    *("t5", Config, MODEL_TYPES, TENSORS, towers),
    apply=run_pair_or_encoder,
    infer_fields=infer_fields,
    head=(f"{CLASSES}/", f"{TAG_CLASSES}/"),
    pooler=f"{POOLER}/",
)
