"""Config of an MPNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxft.models.families.bert.config import Config as BertConfig
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.hf_config import TextConfig

# The fields, with what a config.json without the field means.
FIELDS: dict[str, Any] = {
    "vocab_size": 30_527,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
SIZES = tuple(FIELDS)[:6]
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
# transformers computes these for one value only, whatever config.json says.
PADDING, BUCKETS, FURTHEST = 1, 32, 128


@dataclass(frozen=True)
class Config(TextConfig):
    """Config of an MPNet.

    Args:
        model_type, fields: as `TextConfig` has them.
    """

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "relative_attention_num_buckets": BUCKETS,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "tie_word_embeddings": True,
    }

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, FIELDS, SIZES, ignore)
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        return cls(fields["model_type"], own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    @property
    def max_positions(self) -> int:
        """Return the most tokens an example may have: positions count from after the padding's."""
        return self.fields["max_position_embeddings"] - PADDING - 1

    @property
    def bert(self) -> BertConfig:
        """Return the numbers of the modules that are as RoBERTa's: embeddings, MLP and heads."""
        return BertConfig.of_kin(
            self.model_type, self.fields, max_positions=self.max_positions, padding=PADDING
        )
