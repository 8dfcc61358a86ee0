"""Config of a Nomic BERT, in the spelling of its own code on the hub or of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.families.bert.config import Config as BertConfig
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.rotary import Rotary, read_rotary
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.field_kinds import is_whole, quoted
from jaxft.models.weights.hf_config import TextConfig

# The fields, with what a config.json without the field means.
FIELDS: dict[str, Any] = {
    "vocab_size": 30_528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 2048,
    "type_vocab_size": 2,
    "head_dim": None,
    "pad_token_id": 0,  # transformers takes no null for it
    "hidden_act": "silu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": None,
    "initializer_range": 0.02,
    "rope_theta": 1000.0,
    "rope_scaling": None,
    "rope_parameters": None,
}
SIZES = tuple(FIELDS)[:7]
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
# The hub's own code's name of a field -> the name above. Sizes that a file has under both names
# must be equal; of the others the name above counts.
SAME_SIZES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}
OLD_NAMES = SAME_SIZES | {
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
    "rotary_emb_base": "rope_theta",
}
GATES = {"swiglu": "silu", "geglu": "gelu"}
TRAINED = "max_trained_positions"


@dataclass(frozen=True)
class Config(TextConfig):
    """Config of a Nomic BERT.

    Args:
        model_type, fields: as `TextConfig` has them.
        rotary: the rotary embedding.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "add_cross_attention": False,
        "causal": False,
        "is_decoder": False,
        "is_encoder_decoder": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "use_rms_norm": False,
    }
    # Of the hub's own code: its kernels, its loss, rows of the vocabulary that files have already,
    # and fields of GPT-2 that it never reads.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *OLD_NAMES,
        "activation_function",
        "dense_seq_output",
        "embd_pdrop",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        TRAINED,
        "pad_vocab_size_multiple",
        "reorder_and_upcast_attn",
        "rotary_scaling_factor",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "use_flash_attn",
        "use_xentropy",
    )
    READ_ONLY = ("rope_theta", "rope_scaling")

    rotary: Rotary

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(_renamed(fields), FIELDS, SIZES, ignore)
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        if own["head_dim"] is None:
            check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
            own["head_dim"] = own["hidden_size"] // own["num_attention_heads"]
        own["pad_token_id"] = own["pad_token_id"] or 0
        own["max_position_embeddings"] = _positions(fields, own["max_position_embeddings"])
        rotary = read_rotary(own, own["head_dim"], own["rope_theta"])
        scaling = own["rope_scaling"] or own["rope_parameters"] or {}
        own["rope_parameters"] = {"rope_type": rotary.kind, **scaling, "rope_theta": rotary.theta}
        own |= {"rope_theta": rotary.theta, "rope_scaling": None}
        return cls(fields["model_type"], own, read_rotary(own, own["head_dim"], rotary.theta))

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    @property
    def bert(self) -> BertConfig:
        """Return the numbers of the heads, which are BERT's."""
        return BertConfig.of_kin(
            self.model_type, self.fields, max_positions=self.max_positions, padding=None
        )


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with those of the hub's own code under the names of `FIELDS` too.

    Raises:
        UserError: a size differs from itself under another name, or the gate is not known.
    """
    renamed = dict(fields)
    for old, new in OLD_NAMES.items():
        value = fields.get(old)
        if value is None:
            continue
        if old in SAME_SIZES and fields.get(new) not in (None, value):
            raise UserError(
                f"config.json: {old} is {quoted(value)} and {new} is {quoted(fields[new])}; they "
                "are two names of one size."
            )
        if fields.get(new) is None:
            renamed[new] = value
    gate = fields.get("activation_function")
    if gate is not None and fields.get("hidden_act") is None:
        if not isinstance(gate, str) or gate not in GATES:
            known = " and ".join(GATES)
            raise UserError(
                f"config.json: activation_function is {quoted(gate)}; only {known} are supported."
            )
        renamed["hidden_act"] = GATES[gate]
    return renamed


def _positions(fields: Mapping[str, Any], most: int) -> int:
    """Return the most tokens of a text: beyond those of training wavelengths may be stretched."""
    if fields.get("rotary_scaling_factor") is None:
        return most
    trained: Any = fields.get(TRAINED)
    return min(most, trained if is_whole(trained) and trained > 0 else 2048)
