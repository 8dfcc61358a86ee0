"""Config of a BERT or one of its kin: config.json as one set of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.hf_config import HfConfig

BERT: dict[str, Any] = {
    "vocab_size": None,
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "intermediate_size": None,
    "max_position_embeddings": None,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "initializer_range": 0.02,
}
# RoBERTa counts positions from the padding word's id on.
_ROBERTA = BERT | {"pad_token_id": 1}
# The fields of each model type, with what a config.json without the field means.
FIELDS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": BERT
    | {
        "embedding_size": 128,
        "summary_type": "first",
        "summary_use_proj": True,
        "summary_activation": "gelu",
        "summary_last_dropout": 0.1,
    },
    "distilbert": {
        "vocab_size": None,
        "dim": None,
        "n_layers": None,
        "n_heads": None,
        "hidden_dim": None,
        "max_position_embeddings": None,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "qa_dropout": 0.1,
        "initializer_range": 0.02,
    },
}
# Vocabulary, width, blocks, heads, the MLP's width and positions, in each's own words.
SIZES = {name: tuple(fields)[:6] for name, fields in FIELDS.items()} | {
    "electra": (*tuple(BERT)[:6], "embedding_size")
}
HIDDEN_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
RATES = dict.fromkeys(FIELDS, HIDDEN_RATES) | {
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
    "electra": (*HIDDEN_RATES, "summary_last_dropout"),
}


@dataclass(frozen=True)
class Config(HfConfig):
    """Config of a BERT or one of its kin.

    Args:
        model_type, fields: as `HfConfig` has them.
        vocab_size, max_positions, width, blocks, heads, inner: words, the most tokens of an
            example, and the widths.
        word_width: the width of the embeddings, projected where it is not the model's.
        types: rows of the token-type embeddings; 0 where there are none.
        padding: the id of the padding word where positions are counted from the one after it
            on, and only at words that are another; None where they are counted from 0.
        activation: the name of the MLP's activation function.
        eps: added to the variance by a norm.
        std: the standard deviation of a fresh weight.
        rate, weights_rate: dropout of what is added to the stream, and of attention weights.
        classifier_rate, token_rate: dropout before a text's classes, and before a token's.
    """

    # Of each model type.
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = FIELDS
    SIZES: ClassVar[Mapping[str, Sequence[str]]] = SIZES
    RATES: ClassVar[Mapping[str, Sequence[str]]] = RATES
    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "is_encoder_decoder": False,
        "tie_word_embeddings": True,
    }
    # The pooler's shape in old multilingual files, the sines that DistilBERT's positions are
    # initialized with, and what its own code was told of tied words.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "sinusoidal_pos_embds",
        "tie_weights_",
    )

    vocab_size: int
    max_positions: int
    width: int
    blocks: int
    heads: int
    inner: int
    word_width: int
    types: int
    padding: int | None
    activation: str
    eps: float
    std: float
    rate: float
    weights_rate: float
    classifier_rate: float
    token_rate: float

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        sizes = cls.SIZES[model_type]
        own = cls._read(fields, cls.DEFAULTS[model_type], sizes, ignore)
        activation = "activation" if model_type == "distilbert" else "hidden_act"
        check_activation(activation, own[activation], ACTIVATIONS)
        words, width, blocks, heads, inner, _ = (own[name] for name in sizes[:6])
        check_divides(sizes[1], width, heads, "heads")
        shared = {
            "vocab_size": words,
            "width": width,
            "blocks": blocks,
            "heads": heads,
            "inner": inner,
            "activation": own[activation],
            "std": own["initializer_range"],
        }
        read = _distilbert if model_type == "distilbert" else _bert
        return cls(model_type, own, **shared, **read(own))

    @classmethod
    def of_kin(cls, model_type: str, own: Mapping[str, Any], **other: Any) -> Self:
        """Return the numbers of BERT's modules in a family whose fields have BERT's names.

        Args:
            model_type, own: the family's model type and fields.
            other: what the fields do not say, or say otherwise than BERT's.
        """
        sizes = zip(
            ("vocab_size", "width", "blocks", "heads", "inner"), tuple(BERT)[:5], strict=True
        )
        same = {name: own[field] for name, field in sizes}
        same |= {"activation": own["hidden_act"], "std": own["initializer_range"]}
        return cls(model_type, own, **(same | _bert(own) | other))

    def with_dropout(self, rate: float) -> Self:
        return self.from_hf({**self.to_hf(), **dict.fromkeys(self.RATES[self.model_type], rate)})

    @property
    def positions(self) -> int:
        """Return rows of the position embeddings."""
        return self.fields["max_position_embeddings"]

    @property
    def projects(self) -> bool:
        """Return whether the embeddings are mapped to the model's width; an ALBERT's always are."""
        return self.model_type == "albert" or self.word_width != self.width


def _bert(own: Mapping[str, Any]) -> dict[str, Any]:
    """Map the fields of BERT and of its kin that have its names to a `Config`'s."""
    before_head = own.get("classifier_dropout", own.get("classifier_dropout_prob"))
    before_head = own["hidden_dropout_prob"] if before_head is None else before_head
    padding = own.get("pad_token_id")
    return {
        "max_positions": own["max_position_embeddings"] - (0 if padding is None else padding + 1),
        "word_width": own.get("embedding_size", own["hidden_size"]),
        "types": own.get("type_vocab_size", 0),
        "padding": padding,
        "eps": own["layer_norm_eps"],
        "rate": own["hidden_dropout_prob"],
        "weights_rate": own["attention_probs_dropout_prob"],
        "classifier_rate": before_head,
        "token_rate": before_head,
    }


def _distilbert(own: Mapping[str, Any]) -> dict[str, Any]:
    """Map DistilBERT's fields to a `Config`'s."""
    return {
        "max_positions": own["max_position_embeddings"],
        "word_width": own["dim"],
        "types": 0,
        "padding": None,
        "eps": 1e-12,
        "rate": own["dropout"],
        "weights_rate": own["attention_dropout"],
        "classifier_rate": own["seq_classif_dropout"],
        "token_rate": own["dropout"],
    }
