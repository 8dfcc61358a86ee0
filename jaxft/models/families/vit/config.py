"""Config of a ViT or one of its kin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from jaxft.errors import UserError
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.hf_config import ImageConfig

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
# DINOv3's, which has positions by rotation and a bias of its own for each map.
ROTARY = {
    "intermediate_size": None,
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "layerscale_value": 1.0,
    "num_register_tokens": 0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "rope_theta": 100.0,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": 2.0,
}
LEARNED = ("qkv_bias", "hidden_dropout_prob", "attention_probs_dropout_prob")
# Model type -> its fields.
FIELDS: dict[str, dict[str, Any]] = {
    "vit": COMMON | POOLED,
    "deit": COMMON | POOLED,
    "dinov2": COMMON | SCALED | {"patch_size": 14, "use_mask_token": True},
    "dinov2_with_registers": COMMON | SCALED | {"num_register_tokens": 4},
    # RF-DETR's backbone.
    "rf_detr_dinov2": COMMON
    | SCALED
    | {"patch_size": 14, "use_mask_token": True, "num_windows": 4},
    "dinov3_vit": {n: value for n, value in COMMON.items() if n not in LEARNED} | ROTARY,
    "yolos": COMMON
    | {
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "image_size": (512, 864),
        "num_detection_tokens": 100,
        "use_mid_position_embeddings": True,
    },
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")


class Config(ImageConfig):
    """Config of a ViT or one of its kin."""

    # Fields that change the computation and are computed for one value only.
    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    # Of masked image modelling, of what reads the stream between the blocks, and of DINOv2's own
    # code (files with registers have the last two): `transformers` smooths without an offset.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "encoder_stride",
        "apply_layernorm",
        "out_features",
        "out_indices",
        "reshape_hidden_states",
        "return_class_token",
        "stage_names",
        *("interpolate_antialias", "interpolate_offset"),
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        defaults = FIELDS[model_type]
        sizes = [n for n in (*SIZES, "intermediate_size") if defaults.get(n, 1) is None]
        own = cls._read(fields, defaults, sizes, ignore)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        if "rope_theta" in own:
            width = own["hidden_size"] // own["num_attention_heads"]
            check_divides("the head width", width, 4, "parts")
        for name in ("hidden_act", "pooler_act"):
            check_activation(name, own.get(name, "gelu"), ACTIVATIONS)
        config = cls(model_type, own)
        config._check_grid()
        return config

    def _check_grid(self) -> None:
        if min(self.grid) < 1:
            raise UserError("config.json: image_size is smaller than patch_size.")
        learned = "rope_theta" not in self.fields
        if (
            self.resizes
            and learned
            and math.isqrt(math.prod(self.grid)) ** 2 != math.prod(self.grid)
        ):
            raise UserError(
                f"config.json: an image of image_size has {self.grid[0]} x {self.grid[1]} patches; "
                f"{self.model_type} needs a square of them."
            )

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields([name for name in RATES if name in self.fields], rate)

    def with_image_size(self, size: int) -> Self:
        if self.resizes or self.model_type == "yolos":
            return self  # any size will do
        config = self.with_fields(["image_size"], size)
        config._check_grid()
        return config

    @property
    def resizes(self) -> bool:
        """Return whether the model fits its positions to the image, so that any size will do."""
        return "layerscale_value" in self.fields

    @property
    def specials(self) -> int:
        """Return the number of positions of tokens that are no patch."""
        return 2 if self.model_type == "deit" else 1
