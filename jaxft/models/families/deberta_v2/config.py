"""Config of a DeBERTa v2 or v3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.families.bert.config import Config as BertConfig
from jaxft.models.families.deberta_v2.relative import Buckets
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.field_kinds import quoted
from jaxft.models.weights.hf_config import TextConfig

# The fields, with what a config.json without the field means.
FIELDS: dict[str, Any] = {
    "vocab_size": 128_100,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pooler_dropout": 0.0,
    "cls_dropout": None,
    "pooler_hidden_act": "gelu",
    "relative_attention": False,
    "max_relative_positions": -1,
    "position_buckets": -1,
    "pos_att_type": None,
    "share_att_key": False,
    "norm_rel_ebd": "none",
    "position_biased_input": True,
    "conv_kernel_size": 0,
    "conv_act": "tanh",
    "legacy": True,
    "embedding_size": None,
    "attention_head_size": None,
    "pooler_hidden_size": None,
}
SIZES = tuple(FIELDS)[:6]
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout")
CONTENT_TO_POSITION, POSITION_TO_CONTENT = "c2p", "p2c"


@dataclass(frozen=True)
class Config(TextConfig):
    """Config of a DeBERTa v2 or v3.

    Args:
        model_type, fields: as `TextConfig` has them.
        directions: the kinds of relative scores: `c2p` of queries with the keys of distances,
            `p2c` of keys with the queries of distances. They scale the scores also where
            `relative_attention` is off.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "conv_groups": 1,
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "tie_word_embeddings": True,
    }
    # Null in a config.json is no width to transformers: they stay as they are.
    READ_ONLY = tuple(FIELDS)[-3:]

    directions: tuple[str, ...]

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, FIELDS, SIZES, ignore)
        for name in ("hidden_act", "pooler_hidden_act", "conv_act"):
            check_activation(name, own[name], ACTIVATIONS)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        _check_widths(own)
        _check_relative(own)
        if own["conv_kernel_size"] and own["conv_kernel_size"] % 2 == 0:
            raise UserError(
                f"config.json: conv_kernel_size is {own['conv_kernel_size']}, and must be an odd "
                "number, or 0 for no convolution."
            )
        return cls(fields["model_type"], own, _directions(own["pos_att_type"]))

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    @property
    def word_width(self) -> int:
        """Return the width of the word embeddings."""
        return self.fields["embedding_size"] or self.fields["hidden_size"]

    @property
    def relative(self) -> tuple[str, ...]:
        """Return the kinds of relative scores that are added; none where attention has none."""
        return self.directions if self.fields["relative_attention"] else ()

    @property
    def buckets(self) -> Buckets:
        """Return the buckets of distances."""
        count, furthest = self.fields["position_buckets"], _furthest(self.fields)
        return Buckets(count if count > 0 else furthest, furthest, grow=count > 0)

    @property
    def normalizes_distances(self) -> bool:
        """Return whether the table of distances is normalized."""
        return "layer_norm" in _norms(self.fields["norm_rel_ebd"])

    @property
    def bert(self) -> BertConfig:
        """Return the numbers of the modules that are as BERT's: the MLP and the heads."""
        own = self.fields
        rate, before_classes = own["hidden_dropout_prob"], own["cls_dropout"]
        return BertConfig.of_kin(
            self.model_type,
            own,
            max_positions=own["max_position_embeddings"],
            word_width=self.word_width,
            padding=None,
            classifier_rate=rate if before_classes is None else before_classes,
            token_rate=rate,
        )


def _furthest(own: Mapping[str, Any]) -> int:
    most = own["max_relative_positions"]
    return most if most > 0 else own["max_position_embeddings"]


def _norms(kinds: str) -> list[str]:
    return [kind.strip() for kind in kinds.lower().split("|")]


def _directions(kinds: Any) -> tuple[str, ...]:
    """Return the kinds of relative scores, which are a list or joined by `|`."""
    known = (CONTENT_TO_POSITION, POSITION_TO_CONTENT)
    names = kinds.lower().split("|") if isinstance(kinds, str) else (kinds or [])
    names = [str(name).strip() for name in (names if isinstance(names, list) else [names])]
    if not set(names) <= set(known):
        raise UserError(
            f"config.json: pos_att_type is {quoted(kinds)}; "
            'only "c2p", "p2c" or both are supported.'
        )
    return tuple(name for name in known if name in names)


def _check_widths(own: Mapping[str, Any]) -> None:
    """Raise a UserError if heads or the pooler do not have the width that the model gives them."""
    width = own["hidden_size"]
    expected = {
        "attention_head_size": width // own["num_attention_heads"],
        "pooler_hidden_size": width,
    }
    for name, size in expected.items():
        if own[name] not in (None, size):
            raise UserError(
                f"config.json: {name} is {quoted(own[name])}; only {size} is supported with "
                f"hidden_size {width} and {own['num_attention_heads']} heads."
            )


def _check_relative(own: Mapping[str, Any]) -> None:
    """Raise a UserError if the buckets of distances, or their norm, cannot be computed."""
    if not set(_norms(own["norm_rel_ebd"])) <= {"none", "layer_norm"}:
        raise UserError(
            f"config.json: norm_rel_ebd is {quoted(own['norm_rel_ebd'])}; "
            'only "none" and "layer_norm" are supported.'
        )
    buckets, most = own["position_buckets"], _furthest(own)
    if buckets > 0 and not 1 <= buckets // 2 < most - 1:
        raise UserError(
            f"config.json: position_buckets is {buckets}, and must be from 2 to {2 * most - 3}: "
            f"half of them are for distances of one each, of up to {most}."
        )
