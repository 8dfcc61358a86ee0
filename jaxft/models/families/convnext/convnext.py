"""ConvNeXt: stages of blocks of a wide depthwise convolution and an MLP, over ever fewer pixels.

The second version normalizes what is inside the MLP over the pixels of an image, in place of a
scale of each branch. A block of the tower is a block of a stage, the first of a stage with what
makes the image smaller before it.

Source: Liu et al. (2022), https://arxiv.org/abs/2201.03545; Woo et al. (2023),
https://arxiv.org/abs/2301.00808. The computation follows `transformers`' `modeling_convnext.py`
and `modeling_convnextv2.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.family import ComposedFamily, Family, architectures
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import LayerNorm, Leaf, Linear, parameter
from jaxft.models.layers.vision import (
    Convolution,
    channels_first,
    channels_last,
    drop_path,
    rising_rates,
)
from jaxft.models.tower.stages import Unit, units_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import check_activation, check_lists, check_numbers
from jaxft.models.weights.hf_config import ImageConfig
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import BareNames, within

HEAD = "image_classification"
MODEL_TYPES = {
    "convnext": architectures("ConvNext", HEAD),
    "convnextv2": architectures("ConvNextV2", HEAD),
}
BLOCK_EPS = 1e-6  # of the norms before the last
COMMON: dict[str, Any] = {
    "num_channels": 3,
    "patch_size": 4,
    "num_stages": 4,
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [3, 3, 9, 3],
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "drop_path_rate": 0.0,
    "image_size": 224,
}
FIELDS = {"convnext": COMMON | {"layer_scale_init_value": 1e-6}, "convnextv2": COMMON}
NONE = ((0, 0), (0, 0))  # no zeros round an image


class Config(ImageConfig):
    """Config of a ConvNeXt."""

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    # Of backbones.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *("out_features", "out_indices", "stage_names"),
        *("_out_features", "_out_indices"),
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, FIELDS[fields["model_type"]], ("num_channels",), ignore)
        # Old files leave them to the defaults.
        own |= {name: COMMON[name] for name in ("hidden_sizes", "depths") if own[name] is None}
        check_lists(own, ("depths",), "hidden_sizes")
        check_numbers("depths", own["depths"])
        if (count := own["num_stages"]) != len(own["hidden_sizes"]):
            raise UserError(f"config.json: hidden_sizes must have num_stages ({count}) parts.")
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        return cls(fields["model_type"], own)

    def with_dropout(self, rate: float) -> Self:
        del rate  # there is none but stochastic depth
        return self

    def with_image_size(self, size: int) -> Self:
        """Return the same config, since images of any size fit."""
        del size
        return self

    @property
    def scale(self) -> float:
        """Return the initial scale of each branch; 0 where there is none."""
        return self.fields.get("layer_scale_init_value", 0.0)


class Stem(nnx.Module):
    """Stem: the normalized patches of `pixel_values` [B, C, H, W]."""

    def __init__(self, config: Config):
        own, side = config.fields, config.patch[0]
        width, std = own["hidden_sizes"][0], own["initializer_range"]
        self.patch = Convolution(own["num_channels"], width, side, side, NONE, std=std)
        self.patch_norm = LayerNorm(width, BLOCK_EPS)
        self.channels = own["num_channels"]

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, None]:
        pixels = channels_last(batch["pixel_values"], self.channels)
        return self.patch_norm(self.patch(pixels.astype(compute.dtype))), None


class Shrink(nnx.Module):
    """A norm and a convolution of stride 2: [B, H, W, I] -> [B, H / 2, W / 2, O].

    Args:
        config: the model's.
        stage: before which it is.
    """

    def __init__(self, config: Config, stage: int):
        inside, width = config.fields["hidden_sizes"][stage - 1 : stage + 1]
        std = config.fields["initializer_range"]
        self.norm = LayerNorm(inside, BLOCK_EPS)
        self.convolution = Convolution(inside, width, 2, 2, NONE, std=std)

    def __call__(self, x: jax.Array) -> jax.Array:
        if min(x.shape[1:3]) < 2:
            raise UserError(f"The images are too small: {x.shape[1]} x {x.shape[2]} are left.")
        return self.convolution(self.norm(x))


class ResponseNorm(nnx.Module):
    """Normalization of each channel by its length over the pixels, of all channels' mean length.

    Args:
        width: F.

    Source: Woo et al. (2023), https://arxiv.org/abs/2301.00808, section 3.
    """

    def __init__(self, width: int):
        def leaf() -> Leaf:
            return Leaf((1, 1, 1, width), ("one", "one", "one", "mlp"), decay=False)

        self.scale, self.bias = parameter(leaf()), parameter(leaf())

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        # The root's slope has no end at 0; with the smallest number it is 0 there.
        squares = jnp.maximum(jnp.square(wide).sum((1, 2), keepdims=True), 1e-30)
        lengths = jnp.sqrt(squares)  # [B, 1, 1, F]
        shares = lengths / (lengths.mean(-1, keepdims=True) + 1e-6)
        normal = (wide * shares).astype(x.dtype)
        return self.scale[...] * normal + self.bias[...] + x


class Block(nnx.Module):
    """A depthwise convolution and an MLP, added to the input: [B, H, W, D] -> [B, H, W, D].

    Args:
        config: the model's.
        unit: which block it is.
    """

    def __init__(self, config: Config, unit: Unit):
        own = config.fields
        width, std = own["hidden_sizes"][unit.stage], own["initializer_range"]
        self.shrink = Shrink(config, unit.stage) if unit.shrinks else None
        self.convolution = Convolution(width, width, 7, std=std, alone=True)
        self.norm = LayerNorm(width, BLOCK_EPS)
        self.up = Linear(width, 4 * width, ("embed", "mlp"), std)
        self.response = ResponseNorm(4 * width) if config.model_type == "convnextv2" else None
        self.down = Linear(4 * width, width, ("mlp", "embed"), std)
        scale = Leaf((width,), ("embed",), mean=config.scale, decay=False)
        self.layer_scale = parameter(scale) if config.scale > 0 else None
        self.activation = own["hidden_act"]

    def __call__(
        self,
        x: jax.Array,
        context: None,
        key: jax.Array | None,
        cache: BlockCache,
        drop: jax.Array | float,
    ) -> tuple[jax.Array, BlockCache]:
        x = x if self.shrink is None else self.shrink(x)
        inner = self.up(self.norm(self.convolution(x)), key)
        inner = ACTIVATIONS[self.activation](inner)
        inner = inner if self.response is None else self.response(inner)
        branch = self.down(inner, key)
        branch = branch if self.layer_scale is None else branch * self.layer_scale[...]
        return x + drop_path(branch, drop, key), cache


class Encoder(nnx.Module):
    """Top of a bare model: the last image [B, D, h, w], and its normalized mean [B, D]."""

    def __init__(self, config: Config):
        self.norm = LayerNorm(config.fields["hidden_sizes"][-1], config.fields["layer_norm_eps"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = self.norm(x.mean((1, 2)))
        return {"last_hidden_state": channels_first(x), "pooler_output": pooled}


class Classifier(nnx.Module):
    """Top of an image classifier: `logits` [B, C] of the normalized mean of the last image."""

    def __init__(self, config: Config, labels: int):
        own = config.fields
        width = own["hidden_sizes"][-1]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.head = Linear(width, labels, ("embed", "labels"), own["initializer_range"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.norm(x.mean((1, 2)))).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model; the blocks of a stage but its first are one object."""
    units = list(units_of(config.fields["depths"]))
    kinds = {(unit.stage, unit.shrinks): unit for unit in units}
    parts = {kind: Part(Block(config, unit)) for kind, unit in kinds.items()}
    blocks = tuple(parts[unit.stage, unit.shrinks] for unit in units)
    top = Encoder(config) if head is None else Classifier(config, num_labels or 2)
    rates = {"drop": rising_rates(config.fields["drop_path_rate"], len(units))}
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top), numbers=rates)}


ENDS = (
    *dense("embeddings.patch_embeddings", "patch"),
    *norm("embeddings.layernorm", "patch_norm"),
    *norm("layernorm", "norm"),
)
BLOCK_NAMES = (
    *dense("dwconv", "convolution"),
    *norm("layernorm", "norm"),
    *dense("pwconv1", "up"),
    *norm("grn", "response"),
    *dense("pwconv2", "down"),
    Name("layer_scale_parameter", "layer_scale"),
)
SHRINK_NAMES = (
    *norm("downsampling_layer.0", "norm"),
    *dense("downsampling_layer.1", "convolution"),
)


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the table of names of a ConvNeXt without its head."""
    lines = list(ENDS)
    for number, unit in enumerate(units_of(config.fields["depths"])):
        stage, ours = f"encoder.stages.{unit.stage}.", f"blocks/{number}/"
        lines += within(BLOCK_NAMES, f"{stage}layers.{unit.number}.", ours)
        if unit.shrinks:
            lines += within(SHRINK_NAMES, stage, f"{ours}shrink/")
    return tuple(lines)


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the ConvNeXts with a config.json's stages."""
    del families, from_two
    config, kind = Config.from_hf(fields, tuple(fields)), fields["model_type"]
    tensors = BareNames(
        {kind: names_of(config)},
        {HEAD: dense("classifier", "head")},
        (r"classifier\..*",),
        prefixes={kind: f"{kind}."},
    )
    return Family("convnext", Config, MODEL_TYPES, tensors, towers, text=False, images=True)


FAMILY = ComposedFamily("convnext", Config, MODEL_TYPES, compose)
