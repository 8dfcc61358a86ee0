"""Config of an RF-DETR: the detector's own numbers, and its backbone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from jaxft.bounds import MOST_BLOCKS
from jaxft.errors import UserError
from jaxft.models.families.vit import config as vit
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.field_kinds import check_kind, is_whole, quoted
from jaxft.models.weights.hf_config import HfConfig

BACKBONE = "backbone_config"
BACKBONE_TYPE = "rf_detr_dinov2"
DROPOUT = ("dropout", "attention_dropout")
ACTIVATION_FIELDS = ("activation_function", "decoder_activation_function")
# Weights of the matching and of the loss, which `tasks/object_detection` reads.
LOSS: dict[str, float] = {
    "class_cost": 2,
    "bbox_cost": 5,
    "giou_cost": 2,
    "class_loss_coefficient": 1,
    "bbox_loss_coefficient": 5,
    "giou_loss_coefficient": 2,
    "focal_alpha": 0.25,
}
SIZES: dict[str, Any] = {
    "d_model": 256,
    "c2f_num_blocks": 3,
    "decoder_layers": 3,
    "decoder_ffn_dim": 2048,
    "decoder_n_points": 4,
    "decoder_self_attention_heads": 8,
    "decoder_cross_attention_heads": 16,
    "num_queries": 300,
    "group_detr": 13,
}
DEFAULTS: dict[str, Any] = {
    **SIZES,
    **LOSS,
    "auxiliary_loss": True,
    "hidden_expansion": 0.5,
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "attention_bias": True,
    "init_std": 0.02,
    "layer_norm_eps": 1e-5,
}
# What config.json means where its backbone's part, or a field of it, is absent.
BACKBONE_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
WITHOUT_BACKBONE = {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "image_size": 518,
    "out_features": ["stage2", "stage5", "stage8", "stage11"],
}
# What `Config` reads itself, or nothing does: the backbone has no registers.
BACKBONE_UNREAD = (
    "num_register_tokens",
    "out_features",
    "out_indices",
    "stage_names",
    "window_block_indexes",
)


class BackboneConfig(vit.Config):
    """Config of a DINOv2 whose blocks see a window of the image, or all of it."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        **vit.Config.FIXED,
        "apply_layernorm": True,
        "reshape_hidden_states": True,
    }
    UNREAD: ClassVar[tuple[str, ...]] = BACKBONE_UNREAD


@dataclass(frozen=True)
class Config(HfConfig):
    """Config of an RF-DETR.

    Args:
        backbone: the DINOv2's own.
        outputs: the depths that the detector reads: 0 for the embeddings, i + 1 for block i.
        windowed: the blocks that see a window of the image and not all of it.
        stored: the backbone's fields in config.json, which are written back.
    """

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False, "num_feature_levels": 1}
    # Of instance segmentation, of another kernel, and what its code never reads.
    UNREAD: ClassVar[tuple[str, ...]] = (
        "activation_dropout",
        "dice_loss_coefficient",
        "disable_custom_kernels",
        "eos_coefficient",
        "intermediate_size",
        "mask_class_loss_coefficient",
        "mask_dice_loss_coefficient",
        "mask_downsample_ratio",
        "mask_loss_coefficient",
        "mask_point_sample_ratio",
        "segmentation_head_activation_function",
    )

    backbone: BackboneConfig
    outputs: tuple[int, ...]
    windowed: tuple[int, ...]
    stored: Mapping[str, Any]

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        rest = {name: value for name, value in fields.items() if name != BACKBONE}
        own = cls._read(rest, DEFAULTS, SIZES, ignore)
        for name in ACTIVATION_FIELDS:
            check_activation(name, own[name], ACTIVATIONS)
        for name in ("decoder_self_attention_heads", "decoder_cross_attention_heads"):
            check_divides("d_model", own["d_model"], own[name], "heads")
        check_divides("d_model", own["d_model"], 4, "parts")
        if own["group_detr"] > MOST_BLOCKS:  # each group has modules of its own
            raise UserError(f"config.json: group_detr must be at most {MOST_BLOCKS:,}.")
        if not 0 < own["hidden_expansion"] * own["d_model"] >= 1:
            raise UserError(
                f"config.json: hidden_expansion is {quoted(own['hidden_expansion'])}, and must be "
                "a number above 0."
            )
        stored = fields.get(BACKBONE, WITHOUT_BACKBONE)
        backbone = _backbone(stored, ignore)
        outputs = _outputs(stored, backbone.fields["num_hidden_layers"])
        windowed = _windowed(stored, outputs)
        return cls(fields["model_type"], own, backbone, outputs, windowed, stored)

    def to_hf(self) -> dict[str, Any]:
        return {**super().to_hf(), BACKBONE: {**self.stored, **self.backbone.to_hf()}}

    def with_dropout(self, rate: float) -> Self:
        return replace(self.with_fields(DROPOUT, rate), backbone=self.backbone.with_dropout(rate))

    def with_image_size(self, size: int) -> Self:
        """Return the config as it is, since positions are resized to the images.

        Raises:
            UserError: a side of that many pixels is not cut into whole windows.
        """
        self.check_image((size, size))
        return self

    def check_image(self, image: tuple[int, ...]) -> None:
        """Raise a UserError unless an image of (height, width) is cut into whole windows."""
        windows = self.backbone.fields["num_windows"]
        sides = [windows * patch for patch in self.backbone.patch]
        if any(length % side or not length for length, side in zip(image, sides, strict=True)):
            raise UserError(
                f"The images are {image[0]} x {image[1]}; the model takes multiples of "
                f"{sides[0]} x {sides[1]}, {windows} windows of whole patches a side.",
                f"Set model.image_size, to {max(1, round(image[0] / sides[0])) * sides[0]} say.",
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """Return the height and width of the images that its positions are for."""
        return self.backbone.image_size

    @property
    def detections(self) -> int:
        """Return the most objects that it detects in an image."""
        return self.fields["num_queries"]


def _backbone(stored: Any, ignore: Sequence[str]) -> BackboneConfig:
    """Read the backbone's part of config.json."""
    if not isinstance(stored, Mapping):
        raise UserError(f"config.json: {BACKBONE} is {quoted(stored)}, and no object.")
    kind = stored.get("model_type", BACKBONE_TYPE)
    if kind != BACKBONE_TYPE:
        raise UserError(
            f"config.json: a '{kind}' is not supported as the backbone of an rf_detr.",
            f"Known: {BACKBONE_TYPE}.",
        )
    fields = {**BACKBONE_DEFAULTS, **stored, "model_type": BACKBONE_TYPE}
    backbone = BackboneConfig.from_hf(fields, ignore)
    if backbone.fields["use_swiglu_ffn"]:
        raise UserError(
            "config.json: use_swiglu_ffn is true; an rf_detr's backbone has no gated MLPs here."
        )
    return backbone


def _outputs(stored: Mapping[str, Any], blocks: int) -> tuple[int, ...]:
    """Return the depths that the detector reads, in order."""
    names = ["stem", *(f"stage{number + 1}" for number in range(blocks))]
    features, indices = stored.get("out_features"), stored.get("out_indices")
    if indices is None and isinstance(features, list):
        indices = [names.index(one) if one in names else None for one in features]
    indices = [blocks] if indices is None else indices
    right = isinstance(indices, list | tuple) and len(indices) > 0
    if not right or not all(is_whole(one) and 0 <= one <= blocks for one in indices):
        raise UserError(
            f"config.json: out_features of {BACKBONE} is {quoted(features or indices)}; it names "
            f"some of stem and stage1 to stage{blocks}."
        )
    return tuple(sorted(set(indices)))


def _windowed(stored: Mapping[str, Any], outputs: tuple[int, ...]) -> tuple[int, ...]:
    """Return the blocks that see windows; where no list says so, all up to the last output but
    those whose number is an output's."""
    listed = stored.get("window_block_indexes")
    if listed is None:
        return tuple(sorted(set(range(outputs[-1] + 1)) - set(outputs)))
    check_kind("window_block_indexes", listed, [])
    return tuple(listed)
