"""Llama and its kin: decoders of pre-norm blocks with rotary positions and a gated MLP.

Mistral sees through a sliding window, Qwen2 has biases, Qwen3 normalises queries and keys, and
SmolLM3 leaves some blocks without positions; all else is one computation.

Source: Touvron et al. (2023), https://arxiv.org/abs/2302.13971; the computation follows
`transformers`' `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`,
`modeling_qwen3.py` and `modeling_smollm3.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.layers import Embedding, Linear, RMSNorm
from jaxft.models.layers_attention import Mask, attention, make_mask
from jaxft.models.layers_batch import Batch, check_length, positions_of, segments_of, slot_of
from jaxft.models.layers_decoder import Bare, CausalLm, LastToken
from jaxft.models.layers_kernels import Needs
from jaxft.models.layers_math import ACTIVATIONS
from jaxft.models.layers_rotary import Rotary, read_rotary, rotary_waves, rotate
from jaxft.models.source_fields import (
    check_activation,
    check_divides,
    check_fields,
    check_sizes,
)
from jaxft.models.transformer import Compute, Part, Tower, run_tower
from jaxft.models.weights import Name, dense, embedding


def heads_of(stem: str) -> dict[str | None, str]:
    """A model type's architectures: transformers names them all in one way."""
    return {
        None: f"{stem}Model",
        "causal_lm": f"{stem}ForCausalLM",
        "text_classification": f"{stem}ForSequenceClassification",
    }


MODEL_TYPES = {
    "llama": heads_of("Llama"),
    "mistral": heads_of("Mistral"),
    "qwen2": heads_of("Qwen2"),
    "qwen3": heads_of("Qwen3"),
    "smollm3": heads_of("SmolLM3"),
}

# The fields that all of them have, with what a config.json without the field means.
COMMON = {
    "vocab_size": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "num_key_value_heads": None,
    "max_position_embeddings": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "rope_theta": 10_000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
WINDOWS = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
# Those that a model type has beside them, or means otherwise.
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32} | WINDOWS,
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, "attention_bias": False} | WINDOWS,
    "smollm3": WINDOWS
    | {
        "num_key_value_heads": 4,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
}
# Fields that change the computation and are computed for one value only.
FIXED = {"is_encoder_decoder": False, "partial_rotary_factor": 1.0}
# How it was trained in parallel, and notes to other programs.
UNREAD = ("pretraining_tp", "is_llama_config", "rope_interleaved", "transformers.js_config")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Config:
    """The numbers of a Llama or one of its kin.

    Args:
        fields: those of `COMMON` and `OWN` under their names in config.json, none missing.
        rotary: the rotary embedding.
        windows: per block: how many positions back it sees, itself included; None for all.
        rotated: per block: whether it has positions.
    """

    model_type: str
    fields: Mapping[str, Any]
    rotary: Rotary
    windows: tuple[int | None, ...]
    rotated: tuple[bool, ...]

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Config:
        """The config of a config.json.

        Args:
            fields: its content.
            ignore: fields the person has judged harmless (`model.ignore`).

        Raises:
            UserError: a field is missing, unknown, or has a value that is not supported.
        """
        model_type = fields["model_type"]
        defaults = COMMON | OWN[model_type]
        check_fields(fields, known=list(defaults), fixed=FIXED, ignore=ignore)
        check_sizes(fields, SIZES)
        own = {name: fields.get(name, default) for name, default in defaults.items()}
        heads = own["num_attention_heads"]
        own["num_key_value_heads"] = own["num_key_value_heads"] or heads
        check_divides("num_attention_heads", heads, own["num_key_value_heads"], "groups")
        if not own["head_dim"]:
            check_divides("hidden_size", own["hidden_size"], heads, "heads")
            own["head_dim"] = own["hidden_size"] // heads
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        theta = defaults["rope_theta"]
        rotary = read_rotary(fields, own["head_dim"], theta)
        rotated = _rotated(own)
        return cls(model_type, own, rotary, _windows(own, rotated), rotated)

    def to_hf(self) -> dict[str, Any]:
        """The fields of config.json that this config owns: all but how its rotary is spelled."""
        spelled = ("rope_theta", "rope_scaling", "rope_parameters")
        own = {name: value for name, value in self.fields.items() if name not in spelled}
        return {"model_type": self.model_type} | own

    def with_dropout(self, rate: float) -> Config:
        """The same config with another dropout rate: there is one, on the attention weights."""
        return replace(self, fields={**self.fields, "attention_dropout": rate})

    @property
    def max_positions(self) -> int:
        """The most tokens an example may have."""
        return self.fields["max_position_embeddings"]

    @property
    def vocab_size(self) -> int:
        """The number of rows of the word embeddings."""
        return self.fields["vocab_size"]


def _rotated(own: Mapping[str, Any]) -> tuple[bool, ...]:
    """Per block: whether it has positions; SmolLM3 leaves out one in four."""
    count, interval = own["num_hidden_layers"], own.get("no_rope_layer_interval")
    if interval is None:
        return (True,) * count
    if own["no_rope_layers"] is None:
        return tuple((index + 1) % interval != 0 for index in range(count))
    if len(own["no_rope_layers"]) < count:
        raise UserError(f"config.json: no_rope_layers does not speak of all {count} blocks.")
    return tuple(map(bool, own["no_rope_layers"][:count]))


def _windows(own: Mapping[str, Any], rotated: Sequence[bool]) -> tuple[int | None, ...]:
    """Per block: its sliding window, or None where it sees everything before it."""
    count, window = own["num_hidden_layers"], own.get("sliding_window")
    if not own.get("use_sliding_window", True):
        window = None
    types = own.get("layer_types")
    if types is None:
        if "no_rope_layers" in own:
            return tuple(None if turned else window for turned in rotated)
        first = own.get("max_window_layers", 0)
        return (None,) * min(first, count) + (window,) * max(count - first, 0)
    known = {"full_attention": None, "sliding_attention": window}
    odd = [one for one in types if one not in known]
    if odd or len(types) != count:
        said = f"has '{odd[0]}', which is not supported" if odd else f"is not of {count} blocks"
        raise UserError(f"config.json: layer_types {said}.")
    if window is None and "sliding_attention" in types:
        raise UserError("config.json: layer_types asks for sliding_window, which is not set.")
    return tuple(known[one] for one in types)


def scale(hf: str, ours: str) -> tuple[Name, ...]:
    """The line of an RMSNorm."""
    return (Name(f"{hf}.weight", f"{ours}/scale"),)


NAMES = (
    *embedding("model.embed_tokens", "embeddings/word"),
    *scale("model.layers.{i}.input_layernorm", "blocks/{i}/attention/norm"),
    *dense("model.layers.{i}.self_attn.q_proj", "blocks/{i}/attention/query"),
    *dense("model.layers.{i}.self_attn.k_proj", "blocks/{i}/attention/key"),
    *dense("model.layers.{i}.self_attn.v_proj", "blocks/{i}/attention/value"),
    *dense("model.layers.{i}.self_attn.o_proj", "blocks/{i}/attention/output"),
    *scale("model.layers.{i}.self_attn.q_norm", "blocks/{i}/attention/query_norm"),
    *scale("model.layers.{i}.self_attn.k_norm", "blocks/{i}/attention/key_norm"),
    *scale("model.layers.{i}.post_attention_layernorm", "blocks/{i}/mlp/norm"),
    *dense("model.layers.{i}.mlp.gate_proj", "blocks/{i}/mlp/gate"),
    *dense("model.layers.{i}.mlp.up_proj", "blocks/{i}/mlp/up"),
    *dense("model.layers.{i}.mlp.down_proj", "blocks/{i}/mlp/down"),
    *scale("model.norm", "norm"),
)
HEAD_NAMES = {
    None: (),
    "causal_lm": (Name("lm_head.weight", "head/kernel", transpose=True),),
    "text_classification": (Name("score.weight", "head/kernel", transpose=True),),
}
PREFIX = "model."
FRESH = ("head/",)
UNUSED = (
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # computed, as a buffer of old files
    r"lm_head\.weight",
    r"score\.weight",
)


def names(head: str | None, model_type: str) -> tuple[Name, ...]:
    """The name table under a head."""
    return NAMES + HEAD_NAMES[head]


def canonical(name: str) -> str:
    """A tensor's name as files have it (with or without prefix) -> as `NAMES` spells it."""
    return PREFIX + name if re.match(r"(embed_tokens|layers|norm)\.", name) else name


def exported(name: str, head: str | None, model_type: str) -> str:
    """A tensor's name as `NAMES` spells it -> as the head's architecture saves it."""
    return name.removeprefix(PREFIX) if head is None else name


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What every block reads beside the stream.

    Args:
        mask: which positions see which.
        cosine, sine: the rotary waves at each position: [B or 1, T, 1, K / 2] float32.
    """

    mask: Mask
    cosine: jax.Array
    sine: jax.Array


class Embeddings(nnx.Module):
    """Word vectors."""

    def __init__(self, config: Config):
        own = config.fields
        std = own["initializer_range"]
        self.word = Embedding(own["vocab_size"], own["hidden_size"], "vocab", std)


class Stem(nnx.Module):
    """What comes before the blocks: the embeddings, which positions see which, the waves."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.max_positions
        self.rotary = config.rotary
        # One window for all blocks is the stem's; windows that differ are the blocks' own.
        self.window = config.windows[0] if len(set(config.windows)) == 1 else None
        self.needs = Needs(
            heads=config.fields["num_attention_heads"],
            groups=config.fields["num_key_value_heads"],
            width=config.fields["head_dim"],
            rate=config.fields["attention_dropout"],
            windows=len(set(config.windows)) > 1,
        )

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Context]:
        check_length(batch, self.max_positions)
        segments = segments_of(batch)
        mask = make_mask(
            segments,
            causal=True,
            window=self.window,
            slot=slot_of(batch),
            kernel=compute.kernel(self.needs, segments.shape),
        )
        cosine, sine = rotary_waves(self.rotary, positions_of(batch))
        return self.embeddings.word(batch["input_ids"]), Context(mask, cosine, sine)


class Attention(nnx.Module):
    """Self-attention of grouped queries over the normalised input, added to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, std, eps = own["hidden_size"], own["initializer_range"], own["rms_norm_eps"]
        self.heads, self.head_width = own["num_attention_heads"], own["head_dim"]
        queries = self.heads * self.head_width
        keys = own["num_key_value_heads"] * self.head_width
        biased = own.get("attention_bias", False)
        inward = biased or config.model_type == "qwen2"
        self.norm = RMSNorm(width, eps)
        self.query = Linear(width, queries, ("embed", "heads"), std, inward)
        self.key = Linear(width, keys, ("embed", "heads"), std, inward)
        self.value = Linear(width, keys, ("embed", "heads"), std, inward)
        self.output = Linear(queries, width, ("heads", "embed"), std, biased)
        normed = config.model_type == "qwen3"
        self.query_norm = RMSNorm(self.head_width, eps, "head") if normed else None
        self.key_norm = RMSNorm(self.head_width, eps, "head") if normed else None
        self.rate = own["attention_dropout"]

    def __call__(self, x: jax.Array, context: Context, key: jax.Array | None) -> jax.Array:
        normal = self.norm(x)

        def placed(projection: Linear, norm: RMSNorm | None) -> jax.Array:
            flat = projection(normal)
            heads = flat.reshape(*flat.shape[:2], -1, self.head_width)  # [B, T, H or G, K]
            heads = heads if norm is None else norm(heads)
            return rotate(heads, (context.cosine, context.sine)).reshape(flat.shape)

        mixed = attention(
            placed(self.query, self.query_norm),
            placed(self.key, self.key_norm),
            self.value(normal),
            context.mask,
            heads=self.heads,
            rate=self.rate,
            dropout_key=key,
        )
        return x + self.output(mixed)


class Mlp(nnx.Module):
    """Two maps up, one of them a gate, and one down, over the normalised input, added to it.

    Source: Shazeer (2020), https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        bias = own.get("mlp_bias", False)
        self.norm = RMSNorm(width, own["rms_norm_eps"])
        self.gate = Linear(width, inner, ("embed", "mlp"), std, bias)
        self.up = Linear(width, inner, ("embed", "mlp"), std, bias)
        self.down = Linear(inner, width, ("mlp", "embed"), std, bias)
        self.activation = own["hidden_act"]

    def __call__(self, x: jax.Array) -> jax.Array:
        normal = self.norm(x)
        inner = ACTIVATIONS[self.activation](self.gate(normal)) * self.up(normal)  # [B, T, F]
        return x + self.down(inner)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D].

    Where blocks differ, `window` is how many positions back this one sees, and `rotated` whether
    it has positions.
    """

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def __call__(
        self,
        x: jax.Array,
        context: Context,
        key: jax.Array | None,
        window: jax.Array | int | None = None,
        rotated: jax.Array | bool | None = None,
    ) -> jax.Array:
        if window is not None:
            context = replace(context, mask=context.mask.within(window))
        if rotated is not None:
            cosine = jnp.where(rotated, context.cosine, 1.0)
            sine = jnp.where(rotated, context.sine, 0.0)
            context = replace(context, cosine=cosine, sine=sine)
        return self.mlp(self.attention(x, context, key))


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """The one tower of a model under a head (a key of each of `MODEL_TYPES`)."""
    own = config.fields
    width, std, vocab = own["hidden_size"], own["initializer_range"], own["vocab_size"]
    ties = {}
    final = RMSNorm(width, own["rms_norm_eps"])
    top: nnx.Module = Bare(final)
    if head == "text_classification":
        classes = Linear(width, num_labels or 2, ("embed", "labels"), std, bias=False)
        top = LastToken(final, classes, own["pad_token_id"])
    elif head == "causal_lm" and own["tie_word_embeddings"]:
        top = CausalLm(final, Embedding(vocab, width, "vocab", std))
        ties = {"head/embedding": "embeddings/word/embedding"}
    elif head == "causal_lm":
        top = CausalLm(final, Linear(width, vocab, ("embed", "vocab"), std, bias=False))
    blocks = (Part(Block(config)),) * own["num_hidden_layers"]
    return {"text": Tower(Part(Stem(config)), blocks, Part(top), ties, _numbers(config))}


def _numbers(config: Config) -> dict[str, list[float]]:
    """What differs between blocks; nothing where they are alike."""
    numbers: dict[str, list[float]] = {}
    if len(set(config.windows)) > 1:
        everything = config.max_positions
        numbers["window"] = [window or everything for window in config.windows]
    if not all(config.rotated):
        numbers["rotated"] = list(config.rotated)
    return numbers


def apply(
    towers: Mapping[str, Tower],
    params: Mapping[str, jax.Array],
    batch: Batch,
    key: jax.Array | None,
    compute: Compute,
) -> dict[str, jax.Array]:
    """The outputs for a batch, under Hugging Face's names.

    Args:
        towers: as `towers` gives them.
        params: the flat dict.
        batch: `input_ids` [B, T] with `attention_mask` where wanted; or packed rows:
            `segment_ids`, `position_ids` [R, T] and `read_positions` [R, S] too.
        key: turns dropout on.
        compute: how to run.

    Raises:
        UserError: the text is longer than the model's positions.
    """
    return run_tower(towers["text"], params, batch, key, compute)
