"""Config of a Llama or one of its kin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.families.llama.phi3 import phi3_rotary
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.rotary import Rotary, read_rotaries_by_kind, read_rotary
from jaxft.models.weights.config_fields import (
    TOKEN_RATE,
    check_activation,
    check_divides,
    read_token_rate,
)
from jaxft.models.weights.field_kinds import quoted
from jaxft.models.weights.hf_config import TextConfig

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
GEMMA = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": None,  # old files have it too, and no code reads it
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}
MIXTURE = {
    "num_experts": None,
    "num_experts_per_tok": None,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
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
        "pad_token_id": 128_004,
        "rope_theta": 2_000_000.0,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    },
    "phi3": {
        "rms_norm_eps": 1e-5,
        "resid_pdrop": 0.0,
        "sliding_window": None,
        "pad_token_id": 32_000,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": None,
    },
    "granite": {
        "attention_bias": False,
        "mlp_bias": False,
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
    "eurobert": {
        "rms_norm_eps": 1e-5,
        "pad_token_id": 128_001,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_pooling": "late",
        "clf_pooling": None,  # what the first files call it
    },
    "olmo2": {"rms_norm_eps": 1e-5, "pad_token_id": 1, "attention_bias": False},
    "qwen3_moe": MIXTURE
    | {
        "num_key_value_heads": 4,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    },
    "mixtral": MIXTURE
    | {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "sliding_window": None,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "olmoe": MIXTURE
    | {
        "rms_norm_eps": 1e-5,
        "pad_token_id": 1,
        "attention_bias": False,
        "clip_qkv": None,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "router_aux_loss_coef": 0.01,
        "norm_topk_prob": False,
    },
    "gpt_oss": MIXTURE
    | {
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0,
        "attention_bias": True,
        "sliding_window": 128,
        "layer_types": None,
        "num_experts": 128,
        "num_experts_per_tok": 4,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "quantization_config": None,
    },
    "gemma": {
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "attention_bias": False,
    },
    "gemma2": GEMMA
    | {
        "rope_theta": 10_000.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": GEMMA
    | {
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}
MODULE = "t5_gemma_module"  # T5Gemma's encoder, and its decoder
OWN[MODULE] = OWN["gemma2"] | {"is_decoder": False, "dropout_rate": 0.0}
# Those without a padding token of their own.
UNPADDED = tuple(name for name, own in OWN.items() if (COMMON | own)["pad_token_id"] is None)
GEMMAS = ("gemma", "gemma2", "gemma3_text", MODULE)
# Those that normalize what attention and MLP give.
NORMED_OUTPUTS = (*GEMMAS[1:], "olmo2")
# Those that normalize queries and keys: each head of them, or all heads as one vector.
NORMED_QUERIES = {
    "qwen3": "head",
    "qwen3_moe": "head",
    "gemma3_text": "head",
    "olmo2": "heads",
    "olmoe": "heads",
}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
# Those of a mixture of experts, where a model type has them.
MIXTURE_SIZES = (
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"),
)
# What gpt-oss means where its config.json says nothing of rotary embeddings.
YARN = {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
}
EXPERTS = ("num_experts", "num_local_experts")  # one number in two spellings


@dataclass(frozen=True)
class Config(TextConfig):
    """Config of a Llama or one of its kin.

    Args:
        model_type, fields: as `TextConfig` has them.
        windows: per block: how many positions back it sees, itself included; None for all.
        rotaries: the rotary embeddings there are.
        waves: per block: which of them it has.
        mixtures: per block: whether it has experts in place of one MLP.
        token_rate: dropout before the classes of tokens. Configs that differ in it alone are equal:
            no other head reads it.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": False,
        "is_causal": True,  # transformers lets any decoder see both ways
        "partial_rotary_factor": 1.0,
        "use_bidirectional_attention": False,
        "full_attn_mod": 1,  # of Phi-4's own code, which can skip blocks
        "interpolate_factor": 1,
        "router_jitter_noise": 0.0,  # of Mixtral, while it trains
    }
    # How it was trained in parallel, notes to other programs, and what layer_types was made from.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "pretraining_tp",
        "is_llama_config",
        "rope_interleaved",
        "max_sequence_length",  # beside max_position_embeddings, in conversions of the first LLaMA
        "cache_implementation",
        "_sliding_window_pattern",
        "embd_pdrop",  # Phi-3 has it and drops no embeddings
        "classifier_dropout",  # read as `token_rate`
        *("mask_token_id", "bos_token", "eos_token", "mask_token", "pad_token"),  # EuroBERT's
        "cross_attention_hidden_size",  # T5Gemma's, the width of its encoder
        *("experts_per_token", "initial_context_length"),  # of gpt-oss, in its own code's words
        "max_window_layers",  # of Qwen3's mixtures, whose windows are on all blocks; Qwen's own
    )
    # The spelling of rotary embeddings, of which there are several: the checkpoint's own is kept.
    # So are the fields of the loss of routers: with it on, transformers cannot generate.
    READ_ONLY = (
        *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"),
        *("partial_rotary_factor", "original_max_position_embeddings", "clf_pooling"),
        *(*EXPERTS, "output_router_logits", "router_aux_loss_coef", "quantization_config"),
    )

    windows: tuple[int | None, ...]
    rotaries: tuple[Rotary, ...]
    waves: tuple[int, ...]
    mixtures: tuple[bool, ...]
    token_rate: float = field(default=TOKEN_RATE, compare=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        defaults = COMMON | OWN[model_type]
        _check_packing(fields.get("quantization_config"))
        if model_type == "gpt_oss" and _says_nothing_of_rope(fields):
            fields = {**fields, **YARN}
        sizes = (*SIZES, *(name for name in MIXTURE_SIZES if name in defaults))
        if model_type == "eurobert" or (model_type == MODULE and not fields.get("is_decoder")):
            ignore = (*ignore, "is_causal")
        own = cls._read(_one_spelling(fields, defaults), defaults, sizes, ignore)
        heads = own["num_attention_heads"]
        own["num_key_value_heads"] = own["num_key_value_heads"] or heads
        check_divides("num_attention_heads", heads, own["num_key_value_heads"], "groups")
        if not own["head_dim"]:
            check_divides("hidden_size", own["hidden_size"], heads, "heads")
            own["head_dim"] = own["hidden_size"] // heads
        name = "hidden_activation" if "hidden_activation" in own else "hidden_act"
        check_activation(name, own[name], ACTIVATIONS)
        _read_pooling(own, fields)
        read = _rotaries_by_kind if "rope_local_base_freq" in own else _rotaries
        rotaries, waves = read(fields, own)
        mixtures, rate = _mixtures(own), read_token_rate(fields)
        return cls(model_type, own, _windows(own), rotaries, waves, mixtures, rate)

    def with_dropout(self, rate: float) -> Self:
        rates = ("attention_dropout", "resid_pdrop", "dropout_rate")
        dropped = self.with_fields([name for name in rates if name in self.fields], rate)
        return replace(dropped, token_rate=rate)

    @property
    def causal(self) -> bool:
        """Return whether a position sees itself and those before it only."""
        return self.fields.get("is_decoder", self.model_type != "eurobert")

    @property
    def reads(self) -> bool:
        """Return whether its blocks attend to an encoder's output."""
        return self.model_type == MODULE and self.causal

    @property
    def gemma(self) -> bool:
        """Return whether it is a Gemma: scaled embeddings, and scales of norms that add to 1."""
        return self.model_type in GEMMAS

    @property
    def expert_width(self) -> int:
        """Return the width inside of an expert."""
        return self.fields.get("moe_intermediate_size") or self.fields["intermediate_size"]

    @property
    def normalized_choice(self) -> bool:
        """Return whether the weights of a token's experts add up to 1; Mixtral's always do."""
        return self.fields.get("norm_topk_prob", True)

    @property
    def sinks(self) -> bool:
        """Return whether each head of attention has a score that joins its softmax."""
        return self.model_type == "gpt_oss"

    @property
    def normed_inputs(self) -> bool:
        """Return whether attention and MLP normalize what they read."""
        return self.model_type != "olmo2"

    @property
    def normed_outputs(self) -> bool:
        """Return whether they normalize what they give."""
        return self.model_type in NORMED_OUTPUTS

    @property
    def activation(self) -> str:
        """Return the name of the MLP's activation function."""
        return self.fields.get("hidden_activation") or self.fields["hidden_act"]

    @property
    def embedding_scale(self) -> float | None:
        """Return the factor on the word vectors, None for none."""
        own = self.fields
        return math.sqrt(own["hidden_size"]) if self.gemma else own.get("embedding_multiplier")

    @property
    def scale(self) -> float:
        """Return the factor on the attention scores on top of 1 / sqrt(K)."""
        own = self.fields
        if "attention_multiplier" in own:
            return math.sqrt(own["head_dim"]) * own["attention_multiplier"]
        return math.sqrt(own["head_dim"] / own.get("query_pre_attn_scalar", own["head_dim"]))

    @property
    def soft_cap(self) -> float | None:
        """Return the bound of the attention scores; Gemma 3 has the field and does not read it."""
        capped = self.model_type in ("gemma2", MODULE)
        return self.fields["attn_logit_softcapping"] if capped else None


def _says_nothing_of_rope(fields: Mapping[str, Any]) -> bool:
    """Return whether a config.json leaves rotary scaling to its model type, by null too."""
    return fields.get("rope_parameters") is None and not fields.get("rope_scaling")


def _read_pooling(own: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Read how EuroBERT pools for a class, by the name that its first files have too.

    Raises:
        UserError: it is none of the three ways.
    """
    if "clf_pooling" not in own:
        return
    old = own["clf_pooling"] if "classifier_pooling" not in fields else None
    own["classifier_pooling"] = pooling = old or own["classifier_pooling"]
    if pooling not in ("bos", "mean", "late"):
        raise UserError(
            f"config.json: classifier_pooling is {quoted(pooling)}; "
            'only "bos", "mean" and "late" are supported.'
        )


def _check_packing(packing: Any) -> None:
    """Raise a UserError unless a checkpoint's weights are plain, or MXFP4 as gpt-oss has them."""
    if packing is None or (isinstance(packing, dict) and packing.get("quant_method") == "mxfp4"):
        return
    raise UserError(
        f"config.json: quantization_config is {quoted(packing)}; only mxfp4 is read.",
        "Fetch the checkpoint without it.",
    )


def _one_spelling(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json with the number of experts under one name, and the first Gemma's GELU.

    Its first files say `gelu` and mean the approximation, as transformers reads them; their
    `hidden_activation` is read by no code.
    """
    if fields["model_type"] == "gemma":
        fields = {name: one for name, one in fields.items() if name != "hidden_activation"}
        if fields.get("hidden_act") == "gelu":
            fields["hidden_act"] = "gelu_pytorch_tanh"
    name, other = EXPERTS
    if name not in defaults or other not in fields:
        return fields
    return {name: fields[other]} | {n: value for n, value in fields.items() if n != other}


def _mixtures(own: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return for each block whether it has experts; Qwen3's mixtures may leave out some."""
    count = own["num_hidden_layers"]
    if "num_experts" not in own:
        return (False,) * count
    if own["num_experts_per_tok"] > own["num_experts"]:
        raise UserError(
            f"config.json: num_experts_per_tok {own['num_experts_per_tok']} is more than the "
            f"{own['num_experts']} experts there are."
        )
    step, dense = own.get("decoder_sparse_step", 1), own.get("mlp_only_layers") or ()
    return tuple((index + 1) % step == 0 and index not in dense for index in range(count))


def _rotaries(
    fields: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[tuple[Rotary, ...], tuple[int, ...]]:
    """Return the rotary embeddings, and the index of each block's."""
    if "partial_rotary_factor" in own:
        return (phi3_rotary(own),), (0,) * own["num_hidden_layers"]
    rotary = read_rotary(fields, own["head_dim"], own["rope_theta"])
    rotated = _rotated(own)
    there = [rotary] * any(rotated) + [replace(rotary, kind="still")] * (not all(rotated))
    return tuple(there), tuple(0 if turned else len(there) - 1 for turned in rotated)


def _rotaries_by_kind(
    fields: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[tuple[Rotary, ...], tuple[int, ...]]:
    """Return the same for Gemma 3, whose blocks with a window have their own embedding."""
    bases = {
        "full_attention": own["rope_theta"],
        "sliding_attention": own["rope_local_base_freq"],
    }
    # The old spelling scales the blocks without a window only.
    scaling = {"full_attention": fields.get("rope_scaling")}
    return read_rotaries_by_kind(own, _layer_types(own), bases, scaling, own["head_dim"])


def _rotated(own: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return for each block whether it has positions; SmolLM3 leaves out one in four."""
    count, interval = own["num_hidden_layers"], own.get("no_rope_layer_interval")
    if interval is None:
        return (True,) * count
    if own["no_rope_layers"] is None:
        return tuple((index + 1) % interval != 0 for index in range(count))
    if len(own["no_rope_layers"]) < count:
        raise UserError(f"config.json: no_rope_layers has fewer entries than the {count} blocks.")
    return tuple(map(bool, own["no_rope_layers"][:count]))


def _windows(own: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Return each block's sliding window, None for full attention."""
    window = own.get("sliding_window") if own.get("use_sliding_window", True) else None
    types = _layer_types(own)
    if window is None and own.get("layer_types") and "sliding_attention" in types:
        raise UserError(
            "config.json: layer_types has sliding_attention, and sliding_window is not set."
        )
    return tuple(window if one == "sliding_attention" else None for one in types)


def _layer_types(own: Mapping[str, Any]) -> tuple[str, ...]:
    """Return each block's `full_attention` or `sliding_attention`, with transformers' defaults."""
    count, types = own["num_hidden_layers"], own.get("layer_types")
    if types is None:
        # Gemma and gpt-oss: each so-many-th block sees everything
        if "query_pre_attn_scalar" in own or "swiglu_limit" in own:
            pattern = own.get("sliding_window_pattern", 2)
            slides = [(index + 1) % pattern != 0 for index in range(count)]
        elif "no_rope_layers" in own:
            slides = [not turned for turned in _rotated(own)]
        else:
            slides = [index >= own.get("max_window_layers", 0) for index in range(count)]
        return tuple("sliding_attention" if one else "full_attention" for one in slides)
    odd = [one for one in types if one not in ("full_attention", "sliding_attention")]
    if odd or len(types) != count:
        problem = (
            f"has '{odd[0]}', which is not supported" if odd else f"does not have {count} entries"
        )
        raise UserError(f"config.json: layer_types {problem}.")
    return tuple(types)
