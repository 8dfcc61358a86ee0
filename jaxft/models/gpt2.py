"""GPT-2: a decoder of pre-norm blocks over word and position embeddings.

Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners"; the
computation follows `transformers`' `modeling_gpt2.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from jaxft.models.layers import Embedding, LayerNorm, Linear, split_key
from jaxft.models.layers_attention import Mask, attention, make_mask
from jaxft.models.layers_batch import Batch, check_length, positions_of, segments_of, slot_of
from jaxft.models.layers_decoder import Bare, CausalLm, LastToken
from jaxft.models.layers_math import ACTIVATIONS, dropout
from jaxft.models.source_fields import (
    check_activation,
    check_divides,
    check_fields,
    check_sizes,
)
from jaxft.models.transformer import Compute, Part, Tower, run_tower
from jaxft.models.weights import Name, embedding, norm


@dataclass(frozen=True)
class Config:
    """The numbers of a GPT-2, under the field names of its config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None

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
        check_sizes(fields, ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"))
        config = cls(**{name: fields[name] for name in known if name in fields})
        check_activation("activation_function", config.activation_function, ACTIVATIONS)
        check_divides("n_embd", config.n_embd, config.n_head, "heads")
        return config

    def to_hf(self) -> dict[str, Any]:
        """The fields of config.json that this config owns."""
        return {"model_type": "gpt2"} | {
            name: getattr(self, name) for name in self.__dataclass_fields__
        }

    def with_dropout(self, rate: float) -> Config:
        """The same config with one dropout rate throughout."""
        return replace(self, resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=rate)

    @property
    def max_positions(self) -> int:
        """The most tokens an example may have."""
        return self.n_positions


# Fields that change the computation and are computed for one value only.
FIXED = {"add_cross_attention": False, "is_encoder_decoder": False}
# The order of arithmetic in half precision, the head for multiple choice, and leftovers.
UNREAD = (
    "reorder_and_upcast_attn",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "_num_labels",
    "n_ctx",
    "n_special",
    "predict_special_tokens",
)

MODEL_TYPES = {
    "gpt2": {
        None: "GPT2Model",
        "causal_lm": "GPT2LMHeadModel",
        "text_classification": "GPT2ForSequenceClassification",
    }
}


def conv(hf: str, ours: str) -> tuple[Name, ...]:
    """The lines of a `Conv1D`, whose kernel is stored (in, out) as ours is."""
    return Name(f"{hf}.weight", f"{ours}/kernel"), Name(f"{hf}.bias", f"{ours}/bias")


def fused(hf: str, *ours: str) -> tuple[Name, ...]:
    """The lines of a `Conv1D` that holds several side by side."""
    return tuple(
        Name(f"{hf}.{theirs}", f"{one}/{leaf}", part=(number, len(ours)))
        for number, one in enumerate(ours)
        for theirs, leaf in (("weight", "kernel"), ("bias", "bias"))
    )


NAMES = (
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
)
HEAD_NAMES = {
    None: (),
    "causal_lm": (Name("lm_head.weight", "head/kernel", transpose=True),),
    "text_classification": (Name("score.weight", "head/kernel", transpose=True),),
}
PREFIX = "transformer."
FRESH = ("head/",)
UNUSED = (
    r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask, as a buffer
    r"lm_head\.weight",
    r"score\.weight",
    r"multiple_choice_head\..*",
)


def names(head: str | None, model_type: str) -> tuple[Name, ...]:
    """The name table under a head."""
    return NAMES + HEAD_NAMES[head]


def canonical(name: str) -> str:
    """A tensor's name as files have it (with or without prefix) -> as `NAMES` spells it."""
    return PREFIX + name if re.match(r"(wte|wpe|h|ln_f)\.", name) else name


def exported(name: str, head: str | None, model_type: str) -> str:
    """A tensor's name as `NAMES` spells it -> as the head's architecture saves it."""
    return name.removeprefix(PREFIX) if head is None else name


class Embeddings(nnx.Module):
    """Word + position vectors.

    Token types are passed over: transformers would look them up among the words, but no GPT-2
    tokenizer gives any, and packed rows carry zeros.
    """

    def __init__(self, config: Config):
        std, width = config.initializer_range, config.n_embd
        self.word = Embedding(config.vocab_size, width, "vocab", std)
        self.position = Embedding(config.n_positions, width, "positions", std, decay=False)
        self.rate = config.embd_pdrop

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        x = self.word(batch["input_ids"]) + self.position(positions_of(batch))  # [B, T, D]
        return dropout(x, self.rate, key)


class Stem(nnx.Module):
    """What comes before the blocks: the embeddings, and which positions see which."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.max_positions = config.n_positions

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask]:
        check_length(batch, self.max_positions)
        return self.embeddings(batch, key), make_mask(
            segments_of(batch), causal=True, slot=slot_of(batch)
        )


class Attention(nnx.Module):
    """Self-attention over the normalised input, added to the input."""

    def __init__(self, config: Config):
        width, std = config.n_embd, config.initializer_range
        self.norm = LayerNorm(width, config.layer_norm_epsilon)
        self.query = Linear(width, width, ("embed", "heads"), std)
        self.key = Linear(width, width, ("embed", "heads"), std)
        self.value = Linear(width, width, ("embed", "heads"), std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.heads = config.n_head
        self.scale = 1.0 if config.scale_attn_weights else (width // config.n_head) ** 0.5
        self.weights_rate = config.attn_pdrop
        self.rate = config.resid_pdrop

    def __call__(
        self, x: jax.Array, mask: Mask, key: jax.Array | None, scale: jax.Array | float
    ) -> jax.Array:
        weights_key, output_key = split_key(key, 2)
        normal = self.norm(x)
        mixed = attention(
            self.query(normal),
            self.key(normal),
            self.value(normal),
            mask,
            heads=self.heads,
            rate=self.weights_rate,
            dropout_key=weights_key,
            scale=self.scale * scale,
        )
        return x + dropout(self.output(mixed), self.rate, output_key)


class Mlp(nnx.Module):
    """Two linear maps with an activation between, over the normalised input, added to it."""

    def __init__(self, config: Config):
        width, std = config.n_embd, config.initializer_range
        inner = config.n_inner or 4 * width
        self.norm = LayerNorm(width, config.layer_norm_epsilon)
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.activation = config.activation_function
        self.rate = config.resid_pdrop

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(self.norm(x)))  # [B, T, F]
        return x + dropout(self.down(inner), self.rate, key)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]; `scale` is the block's own of the scores."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, mask: Mask, key: jax.Array | None, scale: jax.Array | float = 1.0
    ) -> jax.Array:
        attention_key, mlp_key = split_key(key, 2)
        return self.mlp(self.attention(x, mask, attention_key, scale), mlp_key)


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """The one tower of a GPT-2 under a head (a key of `MODEL_TYPES["gpt2"]`)."""
    width, std, ties = config.n_embd, config.initializer_range, {}
    final = LayerNorm(width, config.layer_norm_epsilon)
    top: nnx.Module = Bare(final)
    if head == "text_classification":
        classes = Linear(width, num_labels or 2, ("embed", "labels"), std, bias=False)
        top = LastToken(final, classes, config.pad_token_id)
    elif head == "causal_lm" and config.tie_word_embeddings:
        top = CausalLm(final, Embedding(config.vocab_size, width, "vocab", std))
        ties = {"head/embedding": "embeddings/word/embedding"}
    elif head == "causal_lm":
        top = CausalLm(final, Linear(width, config.vocab_size, ("embed", "vocab"), std, bias=False))
    numbers = {}
    if config.scale_attn_by_inverse_layer_idx:
        numbers["scale"] = [1.0 / (index + 1) for index in range(config.n_layer)]
    blocks = (Part(Block(config)),) * config.n_layer
    return {"text": Tower(Part(Stem(config)), blocks, Part(top), ties, numbers)}


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
