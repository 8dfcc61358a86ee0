"""ResNets and ConvNeXts of timm: those of `transformers` under other names.

Source: timm's `resnet.py` and `convnext.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from jaxft.data.image.timm import PROCESSING
from jaxft.models.families.convnext import convnext
from jaxft.models.families.resnet import resnet
from jaxft.models.families.timm.fields import (
    ARCHITECTURE,
    HEAD,
    MODEL_TYPES,
    TimmNames,
    at_size,
    beside,
    named_classes,
    read_arguments,
    to_timm,
    with_classes,
)
from jaxft.models.family import Family
from jaxft.models.tower.stages import units_of
from jaxft.models.weights.hf_config import TIMM
from jaxft.models.weights.names import Name, batch_norm, dense, norm
from jaxft.models.weights.tensor_names import within

# Architecture -> the kind of block, and how many each stage has.
RESNETS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet26": ("bottleneck", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
    "resnet200": ("bottleneck", (3, 24, 36, 3)),
}
WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
# Architecture -> the blocks of each stage, and the channels of the first.
CONVNEXTS = {
    "convnext_tiny": ([3, 3, 9, 3], 96),
    "convnext_small": ([3, 3, 27, 3], 96),
    "convnext_base": ([3, 3, 27, 3], 128),
    "convnext_large": ([3, 3, 27, 3], 192),
    "convnext_xlarge": ([3, 3, 27, 3], 256),
}
SETTABLE = ("depths", "dims", "drop_path_rate")  # of a ConvNeXt
USUAL = {"in_chans": 3, "global_pool": "avg"}
BLOCK_NAMES = (
    *dense("conv_dw", "convolution"),
    *norm("norm", "norm"),
    *dense("mlp.fc1", "up"),
    *dense("mlp.fc2", "down"),
    Name("gamma", "layer_scale"),
)


class ResNetConfig(resnet.Config):
    """Config of a ResNet of timm."""

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        read_arguments(fields, (), ignore, USUAL)
        kind, depths = RESNETS[fields[ARCHITECTURE]]
        own = {"model_type": "resnet", "layer_type": kind, "depths": list(depths)}
        config = super().from_hf(own | {"hidden_sizes": WIDTHS[kind]})
        return replace(config, model_type=TIMM, fields={**config.fields, **beside(fields)})

    def to_hf(self) -> dict[str, Any]:
        return to_timm(self.fields, {})

    def with_image_size(self, size: int) -> Self:
        return self.with_fields([PROCESSING], at_size(self.fields[PROCESSING], size))


class ConvNextConfig(convnext.Config):
    """Config of a ConvNeXt of timm, whose last norm has the others' epsilon."""

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        changes = read_arguments(fields, SETTABLE, ignore, USUAL)
        depths, first = CONVNEXTS[fields[ARCHITECTURE]]
        own = {
            "depths": changes.get("depths", depths),
            "hidden_sizes": changes.get("dims", [first * 2**stage for stage in range(4)]),
            "drop_path_rate": changes.get("drop_path_rate", 0.0),
            "layer_norm_eps": convnext.BLOCK_EPS,
        }
        config = super().from_hf({"model_type": "convnext", **own})
        return replace(config, model_type=TIMM, fields={**config.fields, **beside(fields)})

    def to_hf(self) -> dict[str, Any]:
        own, (depths, first) = self.fields, CONVNEXTS[self.fields[ARCHITECTURE]]
        named = (depths, [first * 2**stage for stage in range(4)], 0.0)
        values = (own["depths"], own["hidden_sizes"], own["drop_path_rate"])
        changes = {
            name: value
            for name, value, usual in zip(SETTABLE, values, named, strict=True)
            if value != usual
        }
        return to_timm(own, changes)

    def with_image_size(self, size: int) -> Self:
        return self.with_fields([PROCESSING], at_size(self.fields[PROCESSING], size))


def resnet_names(config: resnet.Config) -> tuple[Name, ...]:
    """Return the table of names of a ResNet without its head."""
    lines = _normalized("conv1", "bn1", "embedder")
    for number, unit in enumerate(resnet.units_of(config)):
        hf, ours = f"layer{unit.stage + 1}.{unit.number}", f"blocks/{number}"
        lines += _normalized(f"{hf}.downsample.0", f"{hf}.downsample.1", f"{ours}/shortcut")
        for part in range(3):
            convolution, batch = f"{hf}.conv{part + 1}", f"{hf}.bn{part + 1}"
            lines += _normalized(convolution, batch, f"{ours}/part_{part}")
    return lines


def _normalized(convolution: str, batch: str, ours: str) -> tuple[Name, ...]:
    return *dense(convolution, f"{ours}/convolution"), *batch_norm(batch, f"{ours}/norm")


def convnext_names(config: convnext.Config) -> tuple[Name, ...]:
    """Return the table of names of a ConvNeXt without its head."""
    ends = (*dense("stem.0", "patch"), *norm("stem.1", "patch_norm"), *norm("head.norm", "norm"))
    lines = list(ends)
    for number, unit in enumerate(units_of(config.fields["depths"])):
        stage, ours = f"stages.{unit.stage}.", f"blocks/{number}/"
        lines += within(BLOCK_NAMES, f"{stage}blocks.{unit.number}.", ours)
        if unit.shrinks:
            lines += norm(f"{stage}downsample.0", f"{ours}shrink/norm")
            lines += dense(f"{stage}downsample.1", f"{ours}shrink/convolution")
    return tuple(lines)


def resnet_family(fields: Mapping[str, Any]) -> Family:
    """Build the family of the ResNets with a config.json's stages."""
    names = resnet_names(ResNetConfig.from_hf(fields, tuple(fields)))
    tensors = TimmNames({TIMM: names}, {HEAD: dense("fc", "head")}, (r"fc\..*",))
    return _family(ResNetConfig, tensors, resnet.towers)


def convnext_family(fields: Mapping[str, Any]) -> Family:
    """Build the family of the ConvNeXts with a config.json's stages."""
    names = convnext_names(ConvNextConfig.from_hf(fields, tuple(fields)))
    tensors = TimmNames({TIMM: names}, {HEAD: dense("head.fc", "head")}, (r"head\.fc\..*",))
    return _family(ConvNextConfig, tensors, convnext.towers)


def _family(config: Any, tensors: TimmNames, towers: Any) -> Family:
    return Family(
        *("timm", config, MODEL_TYPES, tensors, towers),
        text=False,
        images=True,
        infer_fields=with_classes,
        class_fields=named_classes,
    )
