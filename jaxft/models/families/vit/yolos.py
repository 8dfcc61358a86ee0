"""YOLOS: a ViT whose last tokens each detect one object of the image, or none.

Learned detection tokens go through the blocks behind the patches; two small MLPs read a class and
a box from each. Positions are resized to whatever image comes; the larger models have positions
of their own before each block but the first.

Source: Fang et al. (2021), https://arxiv.org/abs/2106.00666. The computation follows
`transformers`' `modeling_yolos.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.vit import config as vit_config
from jaxft.models.families.vit.vit import VIT_NAMES, Attention, Encoder, Mlp, needs_of
from jaxft.models.families.vit.yolos_from_vit import same_detections
from jaxft.models.family import Family
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import dropout
from jaxft.models.layers.modules import LayerNorm, Linear, block_keys, tokens
from jaxft.models.layers.vision import PatchEmbedding, Size, grid_of, resize_grid
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense
from jaxft.models.weights.tensor_names import BareNames

Outputs = dict[str, jax.Array]
HEAD_LAYERS = 3  # of the MLP that reads a class, and of the one that reads a box

MODEL_TYPES = {"yolos": {None: "YolosModel", "object_detection": "YolosForObjectDetection"}}
NAMES = (
    *VIT_NAMES,
    Name("embeddings.detection_tokens", "embeddings/detection_tokens"),
    Name("encoder.mid_position_embeddings", "blocks/{i}/position", stacked=True),
)
HEAD_NAMES = (
    *(
        line
        for layer in range(HEAD_LAYERS - 1)
        for line in dense(f"class_labels_classifier.layers.{layer}", f"class_mlp/layers/{layer}")
    ),
    # The layer that is as wide as there are classes: new where they are others.
    *dense(f"class_labels_classifier.layers.{HEAD_LAYERS - 1}", "head"),
    *(
        line
        for layer in range(HEAD_LAYERS)
        for line in dense(f"bbox_predictor.layers.{layer}", f"box_mlp/layers/{layer}")
    ),
)
UNUSED = (
    r"pooler\..*",
    r"(class_labels_classifier|bbox_predictor)\..*",
    # Of a ViT that becomes a detector.
    r"(classifier|cls_classifier|distillation_classifier|decoder)\..*",
    r"embeddings\.(mask_token|distillation_token)",
)


class Config(vit_config.Config):
    """Config of a YOLOS."""

    # Weights of its loss: no output depends on them.
    UNREAD = (
        "auxiliary_loss",
        "class_cost",
        "bbox_cost",
        "giou_cost",
        "bbox_loss_coefficient",
        "giou_loss_coefficient",
        "eos_coefficient",
    )

    @property
    def detections(self) -> int:
        """Return the most objects that it detects in an image."""
        return self.fields["num_detection_tokens"]


@dataclass(frozen=True)
class YolosNames(BareNames):
    """Tensor names of a YOLOS."""

    def in_memory(self, name: str, model_type: str) -> str:
        return name.replace("encoder.mid_position", "encoder.interpolation.mid_position")


TENSORS = YolosNames(
    {"yolos": NAMES},
    {"object_detection": HEAD_NAMES},
    UNUSED,
    fresh=("pooler/", "head/", "class_mlp/", "box_mlp/", "embeddings/detection_tokens"),
    prefixes={"yolos": "vit."},
)


class Context(NamedTuple):
    """Context that every block reads beside the stream.

    Attributes:
        mask: of the attention.
        grid: how many patches the image has down and across.
    """

    mask: Mask | None
    grid: Size


def resized(position: jax.Array, grid: Size, new: Size) -> jax.Array:
    """Resize positions [1, 1 + N + Q, D] of class token, N patches and Q detections to a grid.

    Args:
        position: those of a grid of patches.
        grid: that grid.
        new: the image's.
    """
    if grid == new:
        return position
    count, width = math.prod(grid), position.shape[-1]
    patches = position[0, 1 : 1 + count].astype(jnp.float32).reshape(*grid, width)
    with jax.default_matmul_precision("highest"):
        moved = resize_grid(patches, new).astype(position.dtype).reshape(1, -1, width)
    return jnp.concatenate([position[:, :1], moved, position[:, 1 + count :]], axis=1)


def _position(config: Config) -> nnx.Param:
    count = 1 + math.prod(config.grid) + config.fields["num_detection_tokens"]
    return tokens(count, config.fields["hidden_size"], config.fields["initializer_range"])


class Embeddings(nnx.Module):
    """Class token, patches and detection tokens, with their positions: [B, T, D]."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        self.patch = PatchEmbedding(own["num_channels"], config.patch, width, std)
        self.class_token = tokens(1, width, std)
        self.detection_tokens = tokens(own["num_detection_tokens"], width, std)
        self.position = _position(config)
        self.grid = config.grid
        self.rate = own["hidden_dropout_prob"]

    def __call__(self, pixels: jax.Array, grid: Size, key: jax.Array | None) -> jax.Array:
        def spread(tokens: nnx.Param) -> jax.Array:
            return jnp.broadcast_to(tokens[...], (len(pixels), *tokens.shape[1:]))

        parts = [spread(self.class_token), self.patch(pixels), spread(self.detection_tokens)]
        x = jnp.concatenate(parts, axis=1) + resized(self.position[...], self.grid, grid)
        return dropout(x, self.rate, key)


class Stem(nnx.Module):
    """Stem: the embeddings; all positions of an image attend to each other."""

    def __init__(self, config: Config):
        self.needs = needs_of(config)
        self.embeddings = Embeddings(config)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Context]:
        pixels = batch["pixel_values"]
        image = pixels.shape[2:]
        grid = grid_of(image, self.embeddings.patch.patch)
        if min(grid) < 1:
            raise UserError(f"The images are {image[0]} x {image[1]}, smaller than a patch.")
        x = self.embeddings(pixels, grid, key)
        kernel = compute.kernel(self.needs, x.shape[:2])
        segments = jnp.zeros(x.shape[:2], jnp.int32)
        mask = None if kernel is None else make_mask(segments, kernel=kernel)
        return x, Context(mask, grid)


class Block(nnx.Module):
    """ViT's block, with positions before it or without: [B, T, D] -> [B, T, D].

    `transformers` adds the positions behind the block before, which is the same sum.
    """

    def __init__(self, config: Config, positioned: bool):
        self.position = _position(config) if positioned else None
        self.attention = Attention(config)
        self.mlp = Mlp(config)
        self.grid = config.grid

    def __call__(
        self, x: jax.Array, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        if self.position is not None:
            x = x + resized(self.position[...], self.grid, context.grid)
        return self.mlp(self.attention(x, context.mask, attention_keys), mlp_keys), cache


class Layers(nnx.Module):
    """Stack of linear maps from width D, with a ReLU between them."""

    def __init__(self, width: int, outside: Sequence[tuple[int, str]], std: float):
        made = [Linear(width, size, ("embed", axis), std) for size, axis in outside]
        self.layers = nnx.List(made)

    def __call__(self, x: jax.Array) -> jax.Array:
        first, *rest = self.layers
        x = first(x)
        for layer in rest:
            x = layer(jax.nn.relu(x))
        return x


class Detector(nnx.Module):
    """Top of a detector.

    `logits` [B, Q, C + 1], the last of which is of no object, and `pred_boxes` [B, Q, 4]: centre,
    width and height as shares of the image's.
    """

    def __init__(self, config: Config, num_labels: int):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        inner = [(width, "mlp")] * (HEAD_LAYERS - 1)
        self.class_mlp = Layers(width, inner, std)
        self.head = Linear(width, num_labels + 1, ("embed", "labels"), std)
        self.box_mlp = Layers(width, [*inner, (4, "box")], std)
        self.detections = own["num_detection_tokens"]

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        x = self.norm(x)
        detections = x[:, -self.detections :]  # [B, Q, D]
        return {
            "logits": self.head(jax.nn.relu(self.class_mlp(detections))).astype(jnp.float32),
            "pred_boxes": jax.nn.sigmoid(self.box_mlp(detections).astype(jnp.float32)),
            "last_hidden_state": x,
        }


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    top = Detector(config, num_labels or 2) if head else Encoder(config)
    first = Part(Block(config, positioned=False))
    mid = config.fields["use_mid_position_embeddings"]
    rest = Part(Block(config, positioned=True)) if mid else first
    blocks = (first, *[rest] * (config.fields["num_hidden_layers"] - 1))
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top))}


FAMILY = Family(
    *("yolos", Config, MODEL_TYPES, TENSORS, towers),
    text=False,
    images=True,
    for_task=same_detections,
)
