"""ResNet: stages of residual blocks of convolutions and batch norms, over ever fewer pixels.

A block of the tower is a residual block of a stage. Batch norms keep the statistics of the
checkpoint, in training too.

Source: He et al. (2015), https://arxiv.org/abs/1512.03385. The computation follows `transformers`'
`modeling_resnet.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxft.models.family import ComposedFamily, Family, architectures
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import Linear
from jaxft.models.layers.vision import (
    BatchNorm,
    Convolution,
    Size,
    channels_first,
    channels_last,
)
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import (
    check_activation,
    check_choices,
    check_lists,
    check_numbers,
)
from jaxft.models.weights.hf_config import HfConfig
from jaxft.models.weights.names import Name, batch_norm, dense
from jaxft.models.weights.tensor_names import BareNames

HEAD = "image_classification"
MODEL_TYPES = {"resnet": architectures("ResNet", HEAD)}
PUBLISHED: Size = (224, 224)  # pixels of the images of most checkpoints; any size fits
HEAD_STD = 0.02  # of a fresh classifier
REDUCTION = 4  # of channels inside a bottleneck
DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}


class Config(HfConfig):
    """Config of a ResNet."""

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    # Of backbones.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *("out_features", "out_indices", "stage_names"),
        *("_out_features", "_out_indices"),
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, ("num_channels", "embedding_size"), ignore)
        check_lists(own, ("depths",), "hidden_sizes")
        check_numbers("depths", own["depths"])
        check_choices("layer_type", [own["layer_type"]], ("basic", "bottleneck"))
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        return cls("resnet", own)

    def with_dropout(self, rate: float) -> Self:
        del rate  # there is none
        return self

    @property
    def image_size(self) -> Size:
        """Return the height and width of the images of most checkpoints."""
        return PUBLISHED

    def with_image_size(self, size: int) -> Self:
        """Return the same config, since images of any size fit."""
        del size
        return self


class Unit(NamedTuple):
    """Block of the tower: its stage, its place in it, its channels before and behind, its stride.

    Its first convolution has the stride in a bottleneck of that kind, else its 3 x 3 one.
    """

    stage: int
    number: int
    inside: int
    width: int
    stride: int

    @property
    def projects(self) -> bool:
        """Return whether its shortcut is a convolution."""
        return self.inside != self.width or self.stride > 1


def units_of(config: Config) -> Iterator[Unit]:
    """Yield the blocks in the order in which they run."""
    own = config.fields
    inside = own["embedding_size"]
    for stage, (width, depth) in enumerate(zip(own["hidden_sizes"], own["depths"], strict=True)):
        first = 2 if stage or own["downsample_in_first_stage"] else 1
        for index in range(depth):
            yield Unit(stage, index, inside, width, 1 if index else first)
            inside = width


class Normalized(nnx.Module):
    """A convolution without a bias, and a batch norm.

    Args:
        inside, outside: channels.
        side: pixels a side of the kernel.
        stride: of the output.
    """

    def __init__(self, inside: int, outside: int, side: int, stride: int = 1):
        self.convolution = Convolution(inside, outside, side, stride, bias=False)
        self.norm = BatchNorm(outside)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.convolution(x))


class Stem(nnx.Module):
    """Stem: a convolution and a maximum over neighbors of `pixel_values` [B, C, H, W]."""

    def __init__(self, config: Config):
        own = config.fields
        self.embedder = Normalized(own["num_channels"], own["embedding_size"], 7, 2)
        self.channels, self.activation = own["num_channels"], own["hidden_act"]

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, None]:
        pixels = channels_last(batch["pixel_values"], self.channels)
        x = ACTIVATIONS[self.activation](self.embedder(pixels.astype(compute.dtype)))
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        edges = ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, edges), None


class Block(nnx.Module):
    """Two or three convolutions added to a shortcut: [B, H, W, I] -> [B, H', W', O].

    Args:
        config: the model's.
        unit: which block it is.
    """

    def __init__(self, config: Config, unit: Unit):
        own, (_, _, inside, width, stride) = config.fields, unit
        self.shortcut = Normalized(inside, width, 1, stride) if unit.projects else None
        self.activation = own["hidden_act"]
        if own["layer_type"] == "basic":
            self.part_0 = Normalized(inside, width, 3, stride)
            self.part_1 = Normalized(width, width, 3)
            self.part_2 = None
            return
        inner, early = width // REDUCTION, own["downsample_in_bottleneck"]
        self.part_0 = Normalized(inside, inner, 1, stride if early else 1)
        self.part_1 = Normalized(inner, inner, 3, 1 if early else stride)
        self.part_2 = Normalized(inner, width, 1)

    def __call__(
        self, x: jax.Array, context: None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        inner = self.part_1(jax.nn.relu(self.part_0(x)))
        if self.part_2 is not None:
            inner = self.part_2(jax.nn.relu(inner))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return ACTIVATIONS[self.activation](inner + shortcut), cache


class Encoder(nnx.Module):
    """Top of a bare model: the last image [B, D, h, w], and its mean [B, D, 1, 1]."""

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        image = channels_first(x)
        return {"last_hidden_state": image, "pooler_output": image.mean((2, 3), keepdims=True)}


class Classifier(nnx.Module):
    """Top of an image classifier: `logits` [B, C] of the mean of the last image."""

    def __init__(self, config: Config, labels: int):
        width = config.fields["hidden_sizes"][-1]
        self.head = Linear(width, labels, ("embed", "labels"), HEAD_STD)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(x.mean((1, 2))).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model; alike blocks of a stage are one object."""
    units = list(units_of(config))
    parts = {unit[2:]: Part(Block(config, unit)) for unit in units}
    blocks = tuple(parts[unit[2:]] for unit in units)
    top = Encoder() if head is None else Classifier(config, num_labels or 2)
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top))}


def normalized_names(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of a convolution and its batch norm."""
    return (
        *dense(f"{hf}.convolution", f"{ours}/convolution"),
        *batch_norm(f"{hf}.normalization", f"{ours}/norm"),
    )


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the table of names of a ResNet without its head."""
    lines = list(normalized_names("embedder.embedder", "embedder"))
    for number, unit in enumerate(units_of(config)):
        hf = f"encoder.stages.{unit.stage}.layers.{unit.number}"
        lines += normalized_names(f"{hf}.shortcut", f"blocks/{number}/shortcut")
        for part in range(3):
            lines += normalized_names(f"{hf}.layer.{part}", f"blocks/{number}/part_{part}")
    return tuple(lines)


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the ResNets with a config.json's stages."""
    del families, from_two
    config = Config.from_hf(fields, tuple(fields))
    tensors = BareNames(
        {"resnet": names_of(config)},
        {HEAD: dense("classifier.1", "head")},
        (r"classifier\..*",),
        prefixes={"resnet": "resnet."},
    )
    return Family("resnet", Config, MODEL_TYPES, tensors, towers, text=False, images=True)


FAMILY = ComposedFamily("resnet", Config, MODEL_TYPES, compose)
