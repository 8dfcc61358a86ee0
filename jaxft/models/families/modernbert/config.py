"""Config of a ModernBERT or its decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.rotary import Rotary, read_rotaries_by_kind
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.field_kinds import is_whole, quoted
from jaxft.models.weights.hf_config import TextConfig

FULL, SLIDING = "full_attention", "sliding_attention"
# The fields, with what a config.json without the field means.
FIELDS: dict[str, Any] = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "classifier_dropout": 0.0,
    "layer_types": None,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "rope_parameters": None,
    "rope_scaling": None,
}
DECODER = "modernbert-decoder"
# Those that a model type has beside them.
OWN: dict[str, dict[str, Any]] = {
    "modernbert": {"classifier_pooling": "cls"},
    DECODER: {"pad_token_id": 50_283, "sliding_window": None},
}
SIZES = (*tuple(FIELDS)[:7], "global_attn_every_n_layers")
RATES = ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")


@dataclass(frozen=True)
class Config(TextConfig):
    """Config of a ModernBERT or its decoder.

    Args:
        model_type, fields: as `TextConfig` has them.
        layer_types: each block's `full_attention` or `sliding_attention`.
        rotaries: the rotary embeddings there are.
        waves: per block: which of them it has.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": "absolute",  # in old files, where all positions are rotary
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "tie_word_embeddings": True,
        "is_causal": True,  # of the decoder, which transformers lets see both ways
    }
    # Of PyTorch's kernels and of its loss, the cut of a fresh weight, and tokens of the tokenizer.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "classifier_pooling",  # old files of the decoder have it too
        "cls_token_id",
        "deterministic_flash_attn",
        "initializer_cutoff_factor",
        "layer_norm_eps",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    )
    # The spelling of windows and rotary embeddings, of which there are two: the checkpoint's own
    # is kept.
    READ_ONLY = (*tuple(FIELDS)[-6:], "sliding_window")

    layer_types: tuple[str, ...]
    rotaries: tuple[Rotary, ...]
    waves: tuple[int, ...]

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        if fields.get("position_embedding_type") == "sans_pos":  # what Ettin and mmBERT call it
            ignore = (*ignore, "position_embedding_type")
        ignore = ignore if model_type == DECODER else (*ignore, "is_causal")
        own = cls._read(fields, FIELDS | OWN[model_type], SIZES, ignore)
        for name in ("hidden_activation", "classifier_activation"):
            check_activation(name, own[name], ACTIVATIONS)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        _check_own(own)
        types = _layer_types(own)
        bases = {FULL: own["global_rope_theta"], SLIDING: own["local_rope_theta"]}
        scaling = dict.fromkeys(bases, own["rope_scaling"])
        width = own["hidden_size"] // own["num_attention_heads"]
        rotaries = read_rotaries_by_kind(own, types, bases, scaling, width)
        return cls(model_type, own, types, *rotaries)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    @property
    def causal(self) -> bool:
        """Return whether a position sees itself and those before it only."""
        return self.model_type == DECODER

    @property
    def pooling(self) -> str:
        """Return where a text's class is read: at its `cls` or `last` token, or as its `mean`."""
        return "last" if self.causal else self.fields["classifier_pooling"]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Return for each block how many positions it sees to each side, its own included.

        None where a block sees all. A window of `local_attention` has half of it on each side; a
        decoder has that half behind it, its own position included.
        """
        near = _half(self.fields) if self.causal else self.fields["local_attention"] // 2 + 1
        return tuple(near if kind == SLIDING else None for kind in self.layer_types)


def _half(own: Mapping[str, Any]) -> int:
    """Return a decoder's window, which transformers 5 writes beside what it is made from."""
    window = own["sliding_window"]
    return own["local_attention"] // 2 if window is None else window


def _check_own(own: Mapping[str, Any]) -> None:
    """Raise a UserError unless the fields of one model type alone are supported."""
    if own.get("classifier_pooling", "cls") not in ("cls", "mean"):
        raise UserError(
            f"config.json: classifier_pooling is {quoted(own['classifier_pooling'])}; "
            'only "cls" and "mean" are supported.'
        )
    if "sliding_window" in own and not (is_whole(window := _half(own)) and window > 0):
        raise UserError(
            f"config.json: the sliding window is {quoted(window)}; it must be a whole number "
            "above 0.",
            "It is sliding_window, or half of local_attention.",
        )


def _layer_types(own: Mapping[str, Any]) -> tuple[str, ...]:
    """Return each block's kind: without `layer_types` one in so many sees everything."""
    count, types = own["num_hidden_layers"], own["layer_types"]
    if types is None:
        every = own["global_attn_every_n_layers"]
        return tuple(SLIDING if index % every else FULL for index in range(count))
    if len(types) != count or not set(types) <= {FULL, SLIDING}:
        raise UserError(
            f"config.json: layer_types must be {count} of '{FULL}' and '{SLIDING}', one a block."
        )
    return tuple(types)
