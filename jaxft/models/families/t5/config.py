"""Config of a T5 or an mT5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation
from jaxft.models.weights.field_kinds import quoted
from jaxft.models.weights.hf_config import TextConfig

# The fields of config.json that are read, with what one without the field means.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "classifier_dropout": 0.0,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
OWN = {
    "t5": {},
    "mt5": {
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
    },
}
SIZES = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)
LONGEST = 2**20  # positions: relative ones have no end


class Config(TextConfig):
    """Config of a T5 or an mT5."""

    # The second is the decoder's, which transformers lets see both ways.
    FIXED: ClassVar[Mapping[str, Any]] = {"is_decoder": False, "is_causal": True}
    # What follows from feed_forward_proj, how long texts once were, and whether the file is of an
    # encoder alone, which its tensors say too.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "dense_act_fn",
        "is_encoder_decoder",
        "is_gated_act",
        "n_positions",
    )
    ALSO_WRITTEN = MappingProxyType({"is_encoder_decoder": True})

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        defaults = DEFAULTS | OWN[model_type]
        own = cls._read(fields, defaults, SIZES, ignore)
        own["num_decoder_layers"] = own["num_decoder_layers"] or own["num_layers"]
        if own["scale_decoder_outputs"] is None:  # only transformers 5 says so in so many words
            own["scale_decoder_outputs"] = own["tie_word_embeddings"] is not False
        config = cls(model_type, own)
        check_activation("feed_forward_proj", config.activation, ACTIVATIONS)
        for name, meant in (("dense_act_fn", config.activation), ("is_gated_act", config.gated)):
            if fields.get(name, meant) != meant:
                raise UserError(
                    f"config.json: {name} is {quoted(fields[name])}, and feed_forward_proj "
                    f"'{own['feed_forward_proj']}' means {meant!r}.",
                    "Correct one of them.",
                )
        return config

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(["dropout_rate", "classifier_dropout"], rate)

    @property
    def max_positions(self) -> int:
        """Return the most tokens an example may have."""
        return LONGEST

    @property
    def start_token_id(self) -> int:
        """Return the id of the token that every target starts with."""
        return self.fields["decoder_start_token_id"]

    @property
    def end_token_id(self) -> int:
        """Return the id of the token that ends a target, the first if there are several."""
        ends = self.fields["eos_token_id"]
        return ends[0] if isinstance(ends, list) else ends

    @property
    def gated(self) -> bool:
        """Return whether an MLP has a gate."""
        return self.fields["feed_forward_proj"].startswith("gated-")

    @property
    def activation(self) -> str:
        """Return the name of the MLP's activation function."""
        projection = self.fields["feed_forward_proj"]
        return "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")

    @property
    def scale(self) -> float:
        """Return the factor on the decoder's output before words are scored."""
        scaled = self.model_type != "mt5" and self.fields["scale_decoder_outputs"]
        return self.fields["d_model"] ** -0.5 if scaled else 1.0
