"""Config of a GPT-2, an OPT, a GPT-Neo or an ImageGPT, as one set of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import (
    TOKEN_RATE,
    check_activation,
    check_divides,
    read_token_rate,
)
from jaxft.models.weights.hf_config import HfConfig

# The fields of each model type, with what a config.json without the field means.
FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": None,
        "n_positions": None,
        "n_embd": None,
        "n_layer": None,
        "n_head": None,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "pad_token_id": None,
    },
    "opt": {
        "vocab_size": None,
        "max_position_embeddings": None,
        "hidden_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "ffn_dim": None,
        "word_embed_proj_dim": None,
        "activation_function": "relu",
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "init_std": 0.02,
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
    },
    "gpt_neo": {
        "vocab_size": None,
        "max_position_embeddings": None,
        "hidden_size": None,
        "num_layers": None,
        "num_heads": None,
        "intermediate_size": None,
        "attention_types": [[["global", "local"], 12]],
        "window_size": 256,
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "embed_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "pad_token_id": None,
    },
}
# ImageGPT has GPT-2's fields; its words are colours, and one more that every image begins with.
FIELDS["imagegpt"] = {
    **{name: value for name, value in FIELDS["gpt2"].items() if name != "tie_word_embeddings"},
    "activation_function": "quick_gelu",
}
# Vocabulary, positions, width, blocks and heads, and the rates of dropout, in each's own words.
SIZES = {
    "gpt2": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
    "opt": (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "ffn_dim",
    ),
    "gpt_neo": ("vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads"),
}
SIZES["imagegpt"] = SIZES["gpt2"]
RATES = {
    "gpt2": ("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    "opt": ("attention_dropout", "dropout"),
    "gpt_neo": ("embed_dropout", "attention_dropout", "resid_dropout"),
}
RATES["imagegpt"] = RATES["gpt2"]


@dataclass(frozen=True)
class Config(HfConfig):
    """Config of a GPT-2, an OPT, a GPT-Neo or an ImageGPT.

    Args:
        model_type, fields: as `HfConfig` has them.
        vocab_size, max_positions, width, heads, inner: words, positions, and the widths.
        eps: added to the variance by a norm.
        std: the standard deviation of a fresh weight.
        embedding_rate, weights_rate, rate: dropout of embeddings, of attention weights, and of
            what is added to the stream.
        word_width: the width of the word embeddings, projected where it is not the model's.
        offset: rows of the position embeddings before that of the first position.
        inward_bias, bias: whether query, key and value, and the other maps, have a bias.
        affine: whether norms have a scale and a bias.
        centred: whether a norm takes the mean away first and adds a bias: else it is an RMS norm.
        norm_first: whether a norm stands before attention and MLP, or after their sum.
        final_norm: whether the last block is followed by a norm.
        scales: per block: a factor on the scores on top of 1 / sqrt(K).
        windows: per block: how many positions back it sees, itself included; None for all.
        token_rate: dropout before the classes of tokens. Configs that differ in it alone are equal:
            no other head reads it.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "is_causal": True,  # transformers lets any decoder see both ways
    }
    # The order of arithmetic in half precision, the head for multiple choice, blocks left out at
    # random while training, what follows from `attention_types`, and leftovers.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "layerdrop",
        "attention_layers",
        "classifier_dropout",
        "activation_dropout",
        "n_ctx",
        "n_special",
        "predict_special_tokens",
    )

    vocab_size: int
    max_positions: int
    width: int
    heads: int
    inner: int
    eps: float
    std: float
    embedding_rate: float
    weights_rate: float
    rate: float
    word_width: int
    scales: tuple[float, ...]
    windows: tuple[int | None, ...]
    offset: int = 0
    inward_bias: bool = True
    bias: bool = True
    affine: bool = True
    centred: bool = True
    norm_first: bool = True
    final_norm: bool = True
    token_rate: float = field(default=TOKEN_RATE, compare=False)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        defaults, sizes = FIELDS[model_type], SIZES[model_type]
        own = cls._read(fields, defaults, sizes, ignore)
        check_activation("activation_function", own["activation_function"], ACTIVATIONS)
        width, heads = own[sizes[2]], own[sizes[4]]
        check_divides(sizes[2], width, heads, "heads")
        shared = {"vocab_size": own[sizes[0]], "max_positions": own[sizes[1]]}
        shared |= {"width": width, "heads": heads, "token_rate": read_token_rate(fields)}
        return cls(model_type, own, **shared, **READERS[model_type](own, width, heads))

    def with_dropout(self, rate: float) -> Self:
        rates = dict.fromkeys((*RATES[self.model_type], "classifier_dropout"), rate)
        return self.from_hf({**self.to_hf(), **rates})

    @property
    def activation(self) -> str:
        """Return the name of the MLP's activation function."""
        return self.fields["activation_function"]


class ImageConfig(Config):
    """Config of an ImageGPT, which scores one word less than it embeds, so the two are not tied."""

    FIXED: ClassVar = dict(Config.FIXED) | {"tie_word_embeddings": False}


def _gpt2(own: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """Map GPT-2's fields to a `Config`'s."""
    count, scale = own["n_layer"], 1.0 if own["scale_attn_weights"] else math.sqrt(width // heads)
    by_depth = own["scale_attn_by_inverse_layer_idx"]
    return {
        "inner": own["n_inner"] or 4 * width,
        "eps": own["layer_norm_epsilon"],
        "std": own["initializer_range"],
        "embedding_rate": own["embd_pdrop"],
        "weights_rate": own["attn_pdrop"],
        "rate": own["resid_pdrop"],
        "word_width": width,
        "scales": tuple(scale / (index + 1 if by_depth else 1) for index in range(count)),
        "windows": (None,) * count,
    }


def _opt(own: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """Map OPT's fields to a `Config`'s."""
    count, first = own["num_hidden_layers"], own["do_layer_norm_before"]
    return {
        "inner": own["ffn_dim"],
        "eps": 1e-5,
        "std": own["init_std"],
        "embedding_rate": 0.0,
        "weights_rate": own["attention_dropout"],
        "rate": own["dropout"],
        "word_width": own["word_embed_proj_dim"] or width,
        "scales": (1.0,) * count,
        "windows": (None,) * count,
        "offset": 2,
        "inward_bias": own["enable_bias"],
        "bias": own["enable_bias"],
        "affine": own["layer_norm_elementwise_affine"],
        "norm_first": first,
        "final_norm": first and not own["_remove_final_layer_norm"],
    }


def _gpt_neo(own: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """Map GPT-Neo's fields to a `Config`'s; it never divides scores by sqrt(K)."""
    count = own["num_layers"]
    return {
        "inner": own["intermediate_size"] or 4 * width,
        "eps": own["layer_norm_epsilon"],
        "std": own["initializer_range"],
        "embedding_rate": own["embed_dropout"],
        "weights_rate": own["attention_dropout"],
        "rate": own["resid_dropout"],
        "word_width": width,
        "scales": (math.sqrt(width // heads),) * count,
        "windows": _windows(own["attention_types"], own["window_size"], count),
        "inward_bias": False,
    }


def _imagegpt(own: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """Map ImageGPT's fields to a `Config`'s."""
    return {**_gpt2(own, width, heads), "centred": False}


READERS = {"gpt2": _gpt2, "opt": _opt, "gpt_neo": _gpt_neo, "imagegpt": _imagegpt}


def _windows(types: Sequence[Any], window: int, count: int) -> tuple[int | None, ...]:
    """Return each block's window, from patterns of block kinds and their repetitions."""
    kinds = [kind for pattern, times in types for kind in list(pattern) * times]
    odd = [kind for kind in kinds if kind not in ("global", "local")]
    if odd or len(kinds) != count:
        problem = (
            f"has '{odd[0]}', which is not supported"
            if odd
            else f"does not describe {count} blocks"
        )
        raise UserError(f"config.json: attention_types {problem}.")
    return tuple(window if kind == "local" else None for kind in kinds)
