"""GPT-2, OPT and GPT-Neo: decoders of blocks over word and position embeddings.

GPT-2 keeps kernels (in, out), three of them side by side; OPT, the open GPT-3, looks positions up
two rows on and may project its word embeddings; GPT-Neo lets blocks see through a window in turn,
as GPT-3 does, and does not scale its scores. All else is one computation.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners"; Zhang et al.
(2022), https://arxiv.org/abs/2205.01068; Black et al. (2021), "GPT-Neo"; the computation follows
`transformers`' `modeling_gpt2.py`, `modeling_opt.py` and `modeling_gpt_neo.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
from flax import nnx

from jaxft.models.families.gpt2.config import Config
from jaxft.models.family import Family, ReadingDecoder, architectures
from jaxft.models.layers.attention import Mask
from jaxft.models.layers.batch import Batch, counted, positions_of
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.cross import AttentionMaps, Reading, Source, SourceReader
from jaxft.models.layers.decoder import decoder_top, text_mask
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, Keys, LayerNorm, Linear, RMSNorm, block_keys
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames

HEADS = ("causal_lm", "text_classification", "question_answering")
MODEL_TYPES = {
    "gpt2": architectures("GPT2", *HEADS, "token_classification")
    | {"causal_lm": "GPT2LMHeadModel"},
    "gpt_neo": architectures("GPTNeo", *HEADS, "token_classification"),
    "opt": architectures("OPT", *HEADS),
}


def conv(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of a `Conv1D`, whose kernel is stored (in, out) as ours is."""
    return Name(f"{hf}.weight", f"{ours}/kernel"), Name(f"{hf}.bias", f"{ours}/bias")


def fused(hf: str, *ours: str) -> tuple[Name, ...]:
    """Return the lines of a `Conv1D` that stores several kernels side by side."""
    return tuple(
        Name(f"{hf}.{theirs}", f"{one}/{leaf}", part=(number, len(ours)))
        for number, one in enumerate(ours)
        for theirs, leaf in (("weight", "kernel"), ("bias", "bias"))
    )


NAMES = {
    "gpt2": (
        *embedding("transformer.wte", "embeddings/word"),
        *embedding("transformer.wpe", "embeddings/position"),
        *norm("transformer.h.{i}.ln_1", "blocks/{i}/attention/norm"),
        *fused(
            "transformer.h.{i}.attn.c_attn",
            *(f"blocks/{{i}}/attention/{part}" for part in ("query", "key", "value")),
        ),
        *conv("transformer.h.{i}.attn.c_proj", "blocks/{i}/attention/output"),
        *norm("transformer.h.{i}.ln_2", "blocks/{i}/mlp/norm"),
        *conv("transformer.h.{i}.mlp.c_fc", "blocks/{i}/mlp/up"),
        *conv("transformer.h.{i}.mlp.c_proj", "blocks/{i}/mlp/down"),
        *norm("transformer.ln_f", "norm"),
    ),
    "gpt_neo": (
        *embedding("transformer.wte", "embeddings/word"),
        *embedding("transformer.wpe", "embeddings/position"),
        *norm("transformer.h.{i}.ln_1", "blocks/{i}/attention/norm"),
        *dense("transformer.h.{i}.attn.attention.q_proj", "blocks/{i}/attention/query"),
        *dense("transformer.h.{i}.attn.attention.k_proj", "blocks/{i}/attention/key"),
        *dense("transformer.h.{i}.attn.attention.v_proj", "blocks/{i}/attention/value"),
        *dense("transformer.h.{i}.attn.attention.out_proj", "blocks/{i}/attention/output"),
        *norm("transformer.h.{i}.ln_2", "blocks/{i}/mlp/norm"),
        *dense("transformer.h.{i}.mlp.c_fc", "blocks/{i}/mlp/up"),
        *dense("transformer.h.{i}.mlp.c_proj", "blocks/{i}/mlp/down"),
        *norm("transformer.ln_f", "norm"),
    ),
    "opt": (
        *embedding("model.decoder.embed_tokens", "embeddings/word"),
        *dense("model.decoder.project_in", "embeddings/projection"),
        *embedding("model.decoder.embed_positions", "embeddings/position"),
        *norm("model.decoder.layers.{i}.self_attn_layer_norm", "blocks/{i}/attention/norm"),
        *dense("model.decoder.layers.{i}.self_attn.q_proj", "blocks/{i}/attention/query"),
        *dense("model.decoder.layers.{i}.self_attn.k_proj", "blocks/{i}/attention/key"),
        *dense("model.decoder.layers.{i}.self_attn.v_proj", "blocks/{i}/attention/value"),
        *dense("model.decoder.layers.{i}.self_attn.out_proj", "blocks/{i}/attention/output"),
        *norm("model.decoder.layers.{i}.final_layer_norm", "blocks/{i}/mlp/norm"),
        *dense("model.decoder.layers.{i}.fc1", "blocks/{i}/mlp/up"),
        *dense("model.decoder.layers.{i}.fc2", "blocks/{i}/mlp/down"),
        *norm("model.decoder.final_layer_norm", "norm"),
        *dense("model.decoder.project_out", "projection"),
    ),
}
# Of the attention of a decoder over what an encoder made of a source.
CROSS_NAMES = (
    *norm("transformer.h.{i}.ln_cross_attn", "blocks/{i}/cross/norm"),
    *conv("transformer.h.{i}.crossattention.q_attn", "blocks/{i}/cross/query"),
    *fused(
        "transformer.h.{i}.crossattention.c_attn",
        *(f"blocks/{{i}}/cross/{part}" for part in ("key", "value")),
    ),
    *conv("transformer.h.{i}.crossattention.c_proj", "blocks/{i}/cross/output"),
)
HEAD_NAMES: HeadLines = {
    "causal_lm": (Name("lm_head.weight", "head/kernel", transpose=True),),
    "text_classification": (Name("score.weight", "head/kernel", transpose=True),),
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
}
UNUSED = (
    # The causal mask, as a buffer.
    r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|masked_bias)",
    r"transformer\.h\.\d+\.crossattention\.(bias|masked_bias)",
    r"lm_head\.weight",
    r"score\.weight",
    r"(classifier|qa_outputs)\..*",
    r"multiple_choice_head\..*",
)
PREFIXES = {"transformer.": "wte|wpe|h|ln_f", "model.": "decoder"}
TIED = tuple(
    (f"{words}.weight", "lm_head.weight")
    for words in ("transformer.wte", "model.decoder.embed_tokens")
)
TENSORS = PrefixedNames(NAMES, HEAD_NAMES, UNUSED, prefixes=PREFIXES, tied=TIED)


def make_norm(config: Config) -> LayerNorm | RMSNorm:
    """Build a norm of the stream."""
    if not config.centred:
        return RMSNorm(config.width, config.eps)
    return LayerNorm(config.width, config.eps, config.affine)


class Embeddings(nnx.Module):
    """Sum of word and position vectors.

    Token types are passed over: transformers would look them up among the words, but no GPT-2
    tokenizer gives any, and packed rows carry zeros.
    """

    def __init__(self, config: Config):
        std, width = config.std, config.width
        self.word = Embedding(config.vocab_size, config.word_width, "vocab", std)
        projected = config.word_width != width
        axes = ("words", "embed")
        self.projection = Linear(config.word_width, width, axes, std, False) if projected else None
        rows = config.max_positions + config.offset
        self.position = Embedding(rows, width, "positions", std, decay=False)
        self.offset = config.offset
        self.rate = config.embedding_rate

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        words = self.word(batch["input_ids"])
        words = words if self.projection is None else self.projection(words)
        x = words + self.position(self._rows(batch))  # [B, T, D]
        return dropout(x, self.rate, key)

    def _rows(self, batch: Batch) -> jax.Array:
        """Return each token's row of the position embeddings; OPT does not count padding."""
        if self.offset and "position_ids" not in batch and "attention_mask" in batch:
            mask = batch["attention_mask"]
            return counted(mask, batch) * mask - 1 + self.offset
        return positions_of(batch) + self.offset


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the source of a decoder.

    Args:
        config: the model's.
        source_width: the width of the source that the blocks read; None where they read none.
    """

    def __init__(self, config: Config, source_width: int | None = None):
        self.embeddings = Embeddings(config)
        width, std = config.width, config.std
        self.source = None if source_width is None else SourceReader(width, source_width, std)
        self.max_positions = config.max_positions
        # One window for all blocks is the stem's; windows that differ are the blocks' own.
        alike = len(set(config.windows)) == 1
        self.window = config.windows[0] if alike else None
        heads = config.heads
        width_of_head, rate = config.width // heads, config.weights_rate
        self.needs = Needs(heads, heads, width_of_head, rate, causal=True)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | Reading]:
        kernel = partial(compute.kernel, self.needs)
        mask = text_mask(batch, self.max_positions, self.window, kernel)
        context = mask if self.source is None else Reading(mask, self.source(batch))
        return self.embeddings(batch, key), context


class Attention(AttentionMaps):
    """Attention over its input or over a source, added to the input.

    The norm stands before it or after the sum.
    """

    def __init__(self, config: Config):
        bias = config.inward_bias, config.bias
        super().__init__(config.width, config.heads, config.std, config.weights_rate, *bias)
        self.norm = make_norm(config)
        # One scale for all blocks is here; scales that differ come with each call.
        self.scale = config.scales[0] if len(set(config.scales)) == 1 else 1.0
        self.norm_first = config.norm_first
        self.rate = config.rate

    def __call__(
        self,
        x: jax.Array,
        source: Mask | Source,
        keys: Keys,
        cache: KeyValues | None,
        scale: jax.Array | float,
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_keys, output_keys = keys.split(2)
        read = self.norm(x) if self.norm_first else x
        out, cache = self.attend(read, source, weights_keys, cache, self.scale * scale)
        x = x + dropout(out, self.rate, output_keys.own)
        return (x if self.norm_first else self.norm(x)), cache


class Mlp(nnx.Module):
    """Two linear maps with an activation between, added to their input; the norm as above."""

    def __init__(self, config: Config):
        width, inner, std = config.width, config.inner, config.std
        self.norm = make_norm(config)
        self.up = Linear(width, inner, ("embed", "mlp"), std, config.bias)
        self.down = Linear(inner, width, ("mlp", "embed"), std, config.bias)
        self.activation = config.activation
        self.norm_first = config.norm_first
        self.rate = config.rate

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        read = self.norm(x) if self.norm_first else x
        inner = ACTIVATIONS[self.activation](self.up(read, keys.block))  # [B, T, F]
        x = x + dropout(self.down(inner, keys.block), self.rate, keys.own)
        return x if self.norm_first else self.norm(x)


class Block(nnx.Module):
    """Attention, in a decoder of a source attention over that, then MLP: [B, T, D] -> [B, T, D].

    Where blocks differ, `scale` is this block's factor on its scores, and `window` the number of
    positions that each attends to, itself included.
    """

    def __init__(self, config: Config, decodes: bool = False):
        self.attention = Attention(config)
        self.cross = Attention(config) if decodes else None
        self.mlp = Mlp(config)

    def __call__(
        self,
        x: jax.Array,
        context: Mask | Reading,
        key: jax.Array | None,
        cache: BlockCache,
        scale: jax.Array | float = 1.0,
        window: jax.Array | int | None = None,
    ) -> tuple[jax.Array, BlockCache]:
        if isinstance(context, Mask):
            attention_keys, mlp_keys = block_keys(key, 2)
            mask = context if window is None else context.within(window, cache.slot)
            x, own = self.attention(x, mask, attention_keys, cache.own, scale)
            return self.mlp(x, mlp_keys), BlockCache(own)
        assert self.cross is not None  # only a decoder has a source
        attention_keys, cross_keys, mlp_keys = block_keys(key, 3)
        x, own = self.attention(x, context.mask, attention_keys, cache.own, scale)
        x, source = self.cross(x, context.source, cross_keys, cache.source, scale)
        return self.mlp(x, mlp_keys), BlockCache(own, source)


def reading_names(model_type: str) -> tuple[Name, ...]:
    """Return the name table of a GPT-2 that reads a source."""
    return (*TENSORS.table("causal_lm", model_type), *CROSS_NAMES)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    return {"text": tower(config, *_top(config, head, num_labels))}


def reading_tower(config: Config, source_width: int) -> Tower:
    """Build a GPT-2 that scores next tokens and reads a source of that width in every block."""
    return tower(config, *_top(config, "causal_lm", None), source_width)


def _top(
    config: Config, head: str | None, num_labels: int | None
) -> tuple[nnx.Module, dict[str, str]]:
    """Build the top, and return its ties."""
    width, words, std = config.width, config.word_width, config.std
    axes = ("embed", "words")
    return decoder_top(
        head,
        make_norm(config) if config.final_norm else None,
        vocab_size=config.vocab_size,
        width=words,
        std=std,
        tied=config.fields["tie_word_embeddings"],
        num_labels=num_labels,
        pad_token_id=config.fields["pad_token_id"],
        projection=Linear(width, words, axes, std, bias=False) if words != width else None,
        token_rate=config.token_rate,
    )


def tower(
    config: Config, top: nnx.Module, ties: Mapping[str, str], source_width: int | None = None
) -> Tower:
    """Build the tower of a config, with its top and the names of the top that are ties.

    Args:
        config, top, ties: these.
        source_width: the width of the source that its blocks read; None where they read none.
    """
    numbers: dict[str, list[float]] = {}
    if len(set(config.scales)) > 1:
        numbers["scale"] = list(config.scales)
    if len(set(config.windows)) > 1:
        numbers["window"] = [window or config.max_positions for window in config.windows]
    block = Part(Block(config, decodes=source_width is not None))
    blocks = (block,) * len(config.windows)
    stem = Stem(config, source_width)
    return Tower(Part(stem), blocks, Part(top), ties, numbers, needs=stem.needs)


READING = ReadingDecoder(reading_names, reading_tower)
UNPADDED = ("gpt2", "gpt_neo")
FAMILY = Family(*("gpt2", Config, MODEL_TYPES, TENSORS, towers), reading=READING, unpadded=UNPADDED)
