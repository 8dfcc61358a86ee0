"""Config of BART and its kin: mBART, Pegasus, M2M-100 (NLLB), Marian, and TrOCR's decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import (
    check_activation,
    check_divides,
    check_sizes,
)
from jaxft.models.weights.field_kinds import quoted
from jaxft.models.weights.hf_config import TextConfig

# The fields of config.json that are read, with what one without the field means.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "scale_embedding": False,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": None,
    "forced_eos_token_id": 2,
}
OF_OTHERS = ("encoder_", "forced_", "decoder_start_", "eos_")  # what a decoder alone lacks
MARIAN: dict[str, Any] = {
    "vocab_size": 58101,
    "decoder_vocab_size": None,
    "share_encoder_decoder_embeddings": True,
    "pad_token_id": 58100,
    "eos_token_id": 0,
    "decoder_start_token_id": 58100,
    "forced_eos_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "bart": {"classifier_dropout": 0.0},
    "mbart": {"classifier_dropout": 0.0, "decoder_start_token_id": None},
    "pegasus": {
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": 1,
    },
    "m2m_100": {
        "vocab_size": 128112,
        "activation_function": "relu",
        "attention_dropout": 0.1,
        "scale_embedding": True,
        "forced_eos_token_id": None,
    },
    "marian": MARIAN,
}
# TrOCR is a decoder alone: which of the fields above it has, and its own.
TROCR: dict[str, Any] = {
    **{name: value for name, value in DEFAULTS.items() if not name.startswith(OF_OTHERS)},
    "max_position_embeddings": 512,
    "use_learned_position_embeddings": True,
    "layernorm_embedding": True,
    "cross_attention_hidden_size": None,
    "tie_word_embeddings": True,
}
# What `infer_fields` adds: facts of a checkpoint's tensors that no field of config.json states.
# `own_lm_head`: words are scored by a matrix of their own; `stored_positions`: the sinusoids are
# in the file.
INFERRED = {"own_lm_head": False, "stored_positions": False}
SIZES = tuple(name for name, value in DEFAULTS.items() if type(value) is int and "id" not in name)
SYNONYMS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}
RATES = ("dropout", "attention_dropout", "activation_dropout", "classifier_dropout")
# Model types whose blocks normalize their input, and not the sum of input and output.
PRE_NORM = ("mbart", "pegasus", "m2m_100")
EMBEDDING_NORM = ("bart", "mbart")
LEARNED = ("bart", "mbart")  # positions; the others have sinusoids
COUNTED = ("m2m_100", "trocr")
UNBIASED = ("m2m_100",)  # no final_logits_bias
OFFSET = 2  # rows of a learned table before that of the first position


class Config(TextConfig):
    """Config of a BART or one of its kin."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": True,
        "is_decoder": False,
        "is_causal": True,  # of the decoder, which transformers lets see both ways
        "tie_word_embeddings": True,
    }
    # Whole blocks dropped at random in pretraining, and what old files repeat of their model type.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "encoder_layerdrop",
        "decoder_layerdrop",
        "add_bias_logits",
        "classif_dropout",
        "extra_pos_embeddings",
        "force_bos_token_to_be_generated",
        "save_step",
        *SYNONYMS,
    )
    ALSO_WRITTEN = MappingProxyType({"is_encoder_decoder": True, "tie_word_embeddings": True})
    READ_ONLY: ClassVar[tuple[str, ...]] = tuple(INFERRED)

    # What config.json calls by another name too.
    SYNONYMS: ClassVar[Mapping[str, str]] = SYNONYMS
    TOWERS: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        defaults = DEFAULTS | OWN[model_type] if model_type in OWN else TROCR
        defaults = defaults | INFERRED
        style = _style(model_type) if model_type in OWN else {}
        _check_same(fields, style, "which is not how a {model_type} computes")
        sizes = [name for name in SIZES if name in defaults]
        own = cls._read(fields, defaults, sizes, (*ignore, *style))
        names = {name: own[synonym] for name, synonym in cls.SYNONYMS.items()}
        _check_same(fields, names, "and another field says {meant}")
        for part in cls.TOWERS:
            heads = own[f"{part}_attention_heads"]
            check_divides("d_model", own["d_model"], heads, f"{part}_attention_heads")
        check_activation("activation_function", own["activation_function"], ACTIVATIONS)
        if "decoder_vocab_size" in own:
            count, shared = own["decoder_vocab_size"], own["share_encoder_decoder_embeddings"]
            # Where the towers share their words the field is not read.
            own["decoder_vocab_size"] = own["vocab_size"] if shared or count is None else count
            check_sizes(own, ["decoder_vocab_size"])
        return cls(model_type, own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields([name for name in RATES if name in self.fields], rate)

    @property
    def start_token_id(self) -> int:
        """Return the id of the token that every target starts with."""
        return self._token("decoder_start_token_id", "the token that starts a text")

    @property
    def end_token_id(self) -> int:
        """Return the id of the token that ends a target, the first if there are several."""
        return self._token("eos_token_id", "the token that ends a text")

    def _token(self, name: str, meaning: str) -> int:
        token = self.fields[name]
        token = token[0] if isinstance(token, list) else token
        if token is None:
            raise UserError(
                f"config.json has no {name}, {meaning}.",
                "Add it; of an mBART it is the code of the language to write.",
            )
        return token

    @property
    def pad_token_id(self) -> int:
        """Return the id of the padding word."""
        pad = self.fields["pad_token_id"]
        return OWN.get(self.model_type, {}).get("pad_token_id", 1) if pad is None else pad

    @property
    def shared(self) -> bool:
        """Return whether the encoder and the decoder have the same word embeddings."""
        return self.fields.get("share_encoder_decoder_embeddings", True)

    @property
    def decoder_vocab_size(self) -> int:
        """Return the number of words that the decoder reads and scores."""
        return self.fields.get("decoder_vocab_size", self.vocab_size)

    @property
    def pre_norm(self) -> bool:
        """Return whether blocks normalize their input; otherwise they normalize the sum."""
        return self.model_type in PRE_NORM

    @property
    def learned_positions(self) -> bool:
        """Return whether positions are learned; otherwise they are sinusoids."""
        return self.fields.get("use_learned_position_embeddings", self.model_type in LEARNED)

    @property
    def counted_positions(self) -> bool:
        """Return whether sinusoids are looked up behind the padding word's id, as fairseq does."""
        return self.model_type in COUNTED

    @property
    def embedding_norm(self) -> bool:
        """Return whether the sum of word and position vectors is normalized."""
        return self.fields.get("layernorm_embedding", self.model_type in EMBEDDING_NORM)

    @property
    def cross_width(self) -> int | None:
        """Return the width of the source that keys and values read; None for the model's."""
        return self.fields.get("cross_attention_hidden_size")

    @property
    def word_scale(self) -> float:
        """Return the factor on word vectors."""
        return self.fields["d_model"] ** 0.5 if self.fields["scale_embedding"] else 1.0


class DecoderConfig(Config):
    """Config of TrOCR's decoder, which is a part of another model's."""

    FIXED: ClassVar = {"is_encoder_decoder": False, "is_causal": True}
    UNREAD = (*Config.UNREAD, "is_decoder", "classifier_dropout")
    ALSO_WRITTEN = MappingProxyType({})
    SYNONYMS = MappingProxyType(
        {
            "hidden_size": "d_model",
            "num_hidden_layers": "decoder_layers",
            "num_attention_heads": "decoder_attention_heads",
        }
    )
    TOWERS = ("decoder",)


def _style(model_type: str) -> dict[str, bool]:
    """Return the fields of old files that state what a model type always computes."""
    return {
        "normalize_before": model_type in PRE_NORM,
        "add_final_layer_norm": model_type in PRE_NORM,
        "normalize_embedding": model_type in EMBEDDING_NORM,
        "static_position_embeddings": model_type not in LEARNED,
    }


def _check_same(fields: Mapping[str, Any], meant: Mapping[str, Any], reason: str) -> None:
    """Raise a UserError if a field of config.json differs from what it must be.

    Args:
        fields: config.json.
        meant: field -> its value, where there is one.
        reason: the end of the sentence.
    """
    for name, value in meant.items():
        if fields.get(name, value) not in (value, None):
            end = reason.format(model_type=fields["model_type"], meant=quoted(value))
            raise UserError(f"config.json: {name} is {quoted(fields[name])}, {end}.")
