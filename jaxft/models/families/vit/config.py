"""What the config.json of a ViT or one of its kin says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.vision import Size, grid_of, size_of
from jaxft.models.weights.config_fields import check_activation, check_divides, read_fields

# The fields that all of them have, with what a config.json without the field means.
COMMON = {
    "hidden_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "qkv_bias": True,
    "layer_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
POOLED = {
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "pooler_output_size": None,
    "pooler_act": "tanh",
}
SCALED = {
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
}
# Those that a model type has beside them, or means otherwise.
OWN: dict[str, dict[str, Any]] = {
    "vit": POOLED,
    "deit": POOLED,
    "dinov2": SCALED | {"patch_size": 14, "use_mask_token": True},
    "dinov2_with_registers": SCALED | {"num_register_tokens": 4},
    "yolos": {
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "image_size": (512, 864),
        "num_detection_tokens": 100,
        "use_mid_position_embeddings": True,
    },
}
# Fields that change the computation and are computed for one value only.
FIXED = {"is_encoder_decoder": False}
# Of masked image modelling, and of what reads the stream between the blocks.
UNREAD = (
    "encoder_stride",
    "apply_layernorm",
    "out_features",
    "out_indices",
    "reshape_hidden_states",
    "stage_names",
)
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Config:
    """The numbers of a ViT or one of its kin.

    Args:
        model_type: which of them.
        fields: those of `COMMON` and `OWN` under their names in config.json, none missing.
    """

    model_type: str
    fields: Mapping[str, Any]

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Config:
        """The config of a config.json.

        Args:
            fields: its content.
            ignore: fields the person has judged harmless (`model.ignore`).

        Raises:
            UserError: a field is missing, unknown, or has a value that is not supported.
        """
        model_type = fields["model_type"]
        defaults = COMMON | OWN[model_type]
        own = read_fields(fields, defaults, sizes=SIZES, fixed=FIXED, ignore=ignore)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        for name in ("hidden_act", "pooler_act"):
            check_activation(name, own.get(name, "gelu"), ACTIVATIONS)
        config = cls(model_type, own)
        config._check_grid()
        return config

    def _check_grid(self) -> None:
        if min(self.grid) < 1:
            raise UserError("config.json: image_size is smaller than patch_size.")
        if self.resizes and math.isqrt(math.prod(self.grid)) ** 2 != math.prod(self.grid):
            raise UserError(
                f"config.json: an image of image_size has {self.grid[0]} x {self.grid[1]} patches; "
                f"{self.model_type} takes its positions for a square."
            )

    def to_hf(self) -> dict[str, Any]:
        """The fields of config.json that this config owns."""
        return {"model_type": self.model_type} | dict(self.fields)

    def with_dropout(self, rate: float) -> Config:
        """The same config with one dropout rate throughout; stochastic depth stays as it is."""
        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), rate)
        return replace(self, fields={**self.fields, **rates})

    def with_image_size(self, size: int) -> Config:
        """The same config for square images of that many pixels a side."""
        if self.resizes or self.model_type == "yolos":
            return self  # any size will do
        config = replace(self, fields={**self.fields, "image_size": size})
        config._check_grid()
        return config

    @property
    def image_size(self) -> Size:
        """Height and width of the images that its positions are for."""
        return size_of(self.fields["image_size"])

    @property
    def patch(self) -> Size:
        """Height and width of a patch."""
        return size_of(self.fields["patch_size"])

    @property
    def grid(self) -> Size:
        """How many patches such an image has down and across."""
        return grid_of(self.image_size, self.patch)

    @property
    def resizes(self) -> bool:
        """Whether it resizes its positions to the image itself: any size will do."""
        return "layerscale_value" in self.fields

    @property
    def specials(self) -> int:
        """How many of its positions are for tokens that are no patch."""
        return 2 if self.model_type == "deit" else 1
