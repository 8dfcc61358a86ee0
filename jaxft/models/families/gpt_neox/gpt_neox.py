"""GPT-NeoX and Pythia: decoders whose attention and MLP read the stream side by side.

A part of each head is turned by its position. Without `use_parallel_residual` the MLP reads the
stream behind attention, as elsewhere.

Source: Black et al. (2022), https://arxiv.org/abs/2204.06745; Biderman et al. (2023),
https://arxiv.org/abs/2304.01373; the computation follows `transformers`' `modeling_gpt_neox.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import jax
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.family import ComposedFamily, Family, architectures
from jaxft.models.layers.attention import AttentionOptions, cached_attention
from jaxft.models.layers.batch import Batch, positions_of
from jaxft.models.layers.cache import BlockCache, KeyValues
from jaxft.models.layers.decoder import decoder_top, text_mask
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.rotary import (
    Rotary,
    RotaryContext,
    read_rotary,
    rotary_context,
    rotate,
)
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import (
    TOKEN_RATE,
    check_activation,
    check_divides,
    read_token_rate,
)
from jaxft.models.weights.hf_config import TextConfig
from jaxft.models.weights.names import Name, dense, embedding, fused, norm
from jaxft.models.weights.tensor_names import HeadLines, PrefixedNames
from jaxft.storage.json_files import is_number

HEADS = ("causal_lm", "text_classification", "token_classification", "question_answering")
NAME = "gpt_neox"
MODEL_TYPES = {NAME: architectures("GPTNeoX", *HEADS)}
# The fields, with what a config.json without the field means.
FIELDS: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": None,
    "hidden_act": "gelu",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "attention_bias": True,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)
SHARE = "partial_rotary_factor"
LAYER, BLOCK = "gpt_neox.layers.{i}", "blocks/{i}"
INWARD = tuple(f"{BLOCK}/attention/{part}" for part in ("query", "key", "value"))
NAMES = (
    *embedding("gpt_neox.embed_in", "embeddings/word"),
    *norm(f"{LAYER}.input_layernorm", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.attention.dense", f"{BLOCK}/attention/output"),
    *norm(f"{LAYER}.post_attention_layernorm", f"{BLOCK}/mlp/norm"),
    *dense(f"{LAYER}.mlp.dense_h_to_4h", f"{BLOCK}/mlp/up"),
    *dense(f"{LAYER}.mlp.dense_4h_to_h", f"{BLOCK}/mlp/down"),
    *norm("gpt_neox.final_layer_norm", "norm"),
)
HEAD_NAMES: HeadLines = {
    "causal_lm": (Name("embed_out.weight", "head/kernel", transpose=True),),
    "text_classification": (Name("score.weight", "head/kernel", transpose=True),),
    "token_classification": dense("classifier", "head"),
    "question_answering": dense("qa_outputs", "head"),
}
UNUSED = (
    # The causal mask and the frequencies, as buffers of old files.
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    r"embed_out\.weight",
    r"(score|classifier|qa_outputs)\..*",
)


@dataclass(frozen=True)
class Config(TextConfig):
    """Config of a GPT-NeoX.

    Args:
        model_type, fields: as `TextConfig` has them.
        rotary: the embedding of positions, of the first part of each head.
        token_rate: dropout before the classes of tokens. Configs that differ in it alone are equal:
            no other head reads it.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": False,
        "is_causal": True,  # transformers lets any decoder see both ways
    }
    UNREAD: ClassVar[tuple[str, ...]] = (
        "classifier_dropout",  # read as `token_rate`
        "is_decoder",
        # Of GPT-NeoX 20B and what was made from it, under the names that transformers reads not.
        *("attention_probs_dropout_prob", "hidden_dropout_prob"),
    )
    # The spelling of the rotary embedding, of which there are two: the checkpoint's own stays.
    READ_ONLY = ("rotary_pct", "rotary_emb_base", "rope_scaling", "rope_parameters")

    rotary: Rotary
    token_rate: float = field(default=TOKEN_RATE, compare=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, FIELDS, SIZES, ignore)
        width, heads = own["hidden_size"], own["num_attention_heads"]
        check_divides("hidden_size", width, heads, "heads")
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        rotary = _rotary(own, width // heads)
        return cls(fields["model_type"], own, rotary, read_token_rate(fields))

    def with_dropout(self, rate: float) -> Self:
        dropped = self.with_fields(["hidden_dropout", "attention_dropout"], rate)
        return replace(dropped, token_rate=rate)

    @property
    def needs(self) -> Needs:
        """Return what the blocks ask of an attention kernel."""
        own, heads = self.fields, self.fields["num_attention_heads"]
        width = own["hidden_size"] // heads
        return Needs(heads, heads, width, own["attention_dropout"], causal=True)


def _rotary(own: Mapping[str, Any], width: int) -> Rotary:
    """Read the rotary embedding of heads of a width, in the old or the new spelling.

    Raises:
        UserError: the share is no number above 0 and up to 1, or what `read_rotary` refuses.
    """
    rope = own["rope_scaling"] or own["rope_parameters"] or {}
    name = SHARE if SHARE in rope else "rotary_pct"
    share = rope.get(SHARE, own["rotary_pct"])
    turned = int(width * share) if is_number(share) and 0 < share <= 1 else 0
    if not turned:
        raise UserError(f"config.json: {name} must be a number above 0 and up to 1.")
    rest = {name: value for name, value in rope.items() if name != SHARE}
    fields = {**own, "rope_scaling": None, "rope_parameters": rest}
    return read_rotary(fields, turned, own["rotary_emb_base"])


class NeoxNames(PrefixedNames):
    """Tensor names of a GPT-NeoX, whose output matrix transformers 5 names otherwise in memory."""

    def in_memory(self, name: str, model_type: str) -> str:
        return name.replace("embed_out.", "lm_head.")


def names_of(config: Config) -> NeoxNames:
    """Return the tensor names of a GPT-NeoX, whose files have each head's query, key and value."""
    heads = config.fields["num_attention_heads"]
    inward = fused(f"{LAYER}.attention.query_key_value", *INWARD, heads=heads)
    return NeoxNames(
        dict.fromkeys(MODEL_TYPES, (*NAMES, *inward)),
        HEAD_NAMES,
        UNUSED,
        prefixes={"gpt_neox.": "embed_in|layers|final_layer_norm"},
        tied=(("gpt_neox.embed_in.weight", "embed_out.weight"),),
    )


class Embeddings(nnx.Module):
    """Word vectors: [B, T] -> [B, T, D]."""

    def __init__(self, config: Config):
        own = config.fields
        std, width = own["initializer_range"], own["hidden_size"]
        self.word = Embedding(own["vocab_size"], width, "vocab", std)
        self.rate = own["hidden_dropout"]

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        return dropout(self.word(batch["input_ids"]), self.rate, key)


class Stem(nnx.Module):
    """Stem: the embeddings, the attention mask, and the rotary cosines and sines."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions, self.rotary = config.max_positions, config.rotary
        self.needs = config.needs

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, RotaryContext]:
        mask = text_mask(batch, self.max_positions, None, partial(compute.kernel, self.needs))
        context = rotary_context(mask, [self.rotary], positions_of(batch))
        return self.embeddings(batch, key), context


class Attention(nnx.Module):
    """Self-attention over a normalized stream: [B, T, D] -> [B, T, D], not added to its input."""

    def __init__(self, config: Config):
        own = config.fields
        width, std, bias = own["hidden_size"], own["initializer_range"], own["attention_bias"]
        self.heads = own["num_attention_heads"]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        inward = ("embed", "heads")
        self.query = Linear(width, width, inward, std, bias)
        self.key = Linear(width, width, inward, std, bias)
        self.value = Linear(width, width, inward, std, bias)
        self.output = Linear(width, width, ("heads", "embed"), std, bias)
        self.weights_rate, self.rate = own["attention_dropout"], own["hidden_dropout"]

    def __call__(
        self, normal: jax.Array, context: RotaryContext, keys: Keys, cache: KeyValues | None
    ) -> tuple[jax.Array, KeyValues | None]:
        weights_keys, output_keys = keys.split(2)
        waves = context.cosine[0], context.sine[0]

        def turned(projection: Linear) -> jax.Array:
            flat = projection(normal, keys.block)
            heads = flat.reshape(*flat.shape[:2], self.heads, -1)  # [B, T, H, K]
            return rotate(heads, waves).reshape(flat.shape)

        mixed, cache = cached_attention(
            turned(self.query),
            turned(self.key),
            self.value(normal, keys.block),
            context.mask,
            cache,
            AttentionOptions(self.heads, self.weights_rate, weights_keys.own),
        )
        return dropout(self.output(mixed, keys.block), self.rate, output_keys.own), cache


class Mlp(nnx.Module):
    """A map up, an activation and a map down: [B, T, D] -> [B, T, D], not added to its input."""

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.activation, self.rate = own["hidden_act"], own["hidden_dropout"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(self.norm(x), keys.block))  # [B, T, F]
        return dropout(self.down(inner, keys.block), self.rate, keys.own)


class Block(nnx.Module):
    """Attention and MLP, both of the block's input or one after the other."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)
        self.parallel = config.fields["use_parallel_residual"]

    def __call__(
        self, x: jax.Array, context: RotaryContext, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        attended, own = self.attention(self.attention.norm(x), context, attention_keys, cache.own)
        read = x if self.parallel else x + attended
        return x + attended + self.mlp(read, mlp_keys), BlockCache(own)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    own = config.fields
    top, ties = decoder_top(
        head,
        LayerNorm(own["hidden_size"], own["layer_norm_eps"]),
        vocab_size=own["vocab_size"],
        width=own["hidden_size"],
        std=own["initializer_range"],
        tied=own["tie_word_embeddings"],
        num_labels=num_labels,
        pad_token_id=own["pad_token_id"],
        token_rate=config.token_rate,
    )
    blocks = (Part(Block(config)),) * own["num_hidden_layers"]
    stem = Part(Stem(config))
    return {"text": Tower(stem, blocks, Part(top), ties, needs=config.needs)}


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the models with a config.json's number of heads."""
    del families, from_two
    names = names_of(Config.from_hf(fields, tuple(fields)))
    return Family(NAME, Config, MODEL_TYPES, names, towers, unpadded=(NAME,))


FAMILY = ComposedFamily(NAME, Config, MODEL_TYPES, compose)
