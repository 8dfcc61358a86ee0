"""The image towers of CLIP, SigLIP and SigLIP 2, alone: one vector for an image.

CLIP's has a class token, whose last state is the vector; SigLIP's has none and pools its patches
by attention from one learned query. SigLIP 2's (`naflex`) takes images of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.clip import block as clip_block
from jaxft.models.families.clip.block import (
    BLOCK_NAMES,
    STD,
    Block,
    Mlp,
    needs_of,
    projection,
    read_tower,
    tower_names,
)
from jaxft.models.families.clip.naflex import NaflexEmbeddings, padding_mask
from jaxft.models.family import Family, ModelTypes
from jaxft.models.layers.attention import AttentionOptions, Mask, attention, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.math import linear
from jaxft.models.layers.modules import Embedding, LayerNorm, Leaf, Linear, parameter
from jaxft.models.layers.vision import PatchEmbedding, Size, resize_grid, size_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.hf_config import ImageConfig
from jaxft.models.weights.names import Name, dense, embedding, norm

MODEL_TYPES: ModelTypes = {
    "clip_vision_model": {None: "CLIPVisionModel", "projection": "CLIPVisionModelWithProjection"},
    "siglip_vision_model": {None: "SiglipVisionModel"},
    "siglip2_vision_model": {None: "Siglip2VisionModel"},
}
SIZES = ("num_channels",)
COMMON = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
}
SQUARE = COMMON | {"image_size": 224}
POOLED = clip_block.SIGLIP | {"patch_size": 16, "vision_use_head": True}
DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": clip_block.CLIP | SQUARE | {"patch_size": 32, "projection_dim": 512},
    "siglip_vision_model": SQUARE | POOLED,
    "siglip2_vision_model": COMMON | POOLED | {"num_patches": 256},
}


class Config(ImageConfig):
    """Config of an image tower."""

    FIXED = clip_block.FIXED
    UNREAD = clip_block.UNREAD

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        model_type = fields["model_type"]
        config = cls(model_type, read_tower(fields, DEFAULTS[model_type], SIZES, ignore))
        config._check_grid()
        return config

    def _check_grid(self) -> None:
        if self.naflex and not isinstance(self.fields["patch_size"], int):
            raise UserError("config.json: patch_size must be one number of pixels.")
        if (
            self.naflex
            and math.isqrt(self.fields["num_patches"]) ** 2 != self.fields["num_patches"]
        ):
            raise UserError("config.json: num_patches must be the square of a whole number.")
        if 0 in self.grid:
            raise UserError("config.json: image_size is smaller than patch_size.")

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(["attention_dropout"], rate)

    def with_image_size(self, size: int) -> Self:
        if self.naflex:
            return self  # any size will do
        config = self.with_fields(["image_size"], size)
        config._check_grid()
        return config

    @property
    def naflex(self) -> bool:
        """Return whether positions are fitted to each image, as SigLIP 2's are."""
        return self.model_type == "siglip2_vision_model"

    @property
    def image_size(self) -> Size:
        """Return the height and width of the images that its positions are for."""
        if not self.naflex:
            return size_of(self.fields["image_size"])
        side = math.isqrt(self.fields["num_patches"])
        return side * self.patch[0], side * self.patch[1]

    @property
    def class_token(self) -> bool:
        """Return whether a class token stands before the patches."""
        return self.model_type == "clip_vision_model"


POOL = "pooler"
NAMES = (
    Name("embeddings.class_embedding", "embeddings/class_token"),
    *dense("embeddings.patch_embedding", "embeddings/patch"),
    *embedding("embeddings.position_embedding", "embeddings/position"),
    *norm("pre_layrnorm", "embeddings/norm"),
    *BLOCK_NAMES,
    *norm("post_layernorm", "norm"),
    Name("head.probe", f"{POOL}/query"),
    Name("head.attention.in_proj_weight", f"{POOL}/input/kernel", transpose=True),
    Name("head.attention.in_proj_bias", f"{POOL}/input/bias"),
    *dense("head.attention.out_proj", f"{POOL}/output"),
    *norm("head.layernorm", f"{POOL}/mlp/norm"),
    *dense("head.mlp.fc1", f"{POOL}/mlp/up"),
    *dense("head.mlp.fc2", f"{POOL}/mlp/down"),
)
PROJECTION = Name("visual_projection.weight", "head/kernel", transpose=True)
BARE = ("siglip_vision_model", "siglip2_vision_model")
TENSORS = tower_names(BARE, "clip_vision_model", NAMES, "vision_model.", PROJECTION)


def refits(
    config: Config, fields: Mapping[str, Any]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the function that resizes stored positions to another image size, on their grid.

    Args:
        config: of the model wanted.
        fields: config.json of the checkpoint.
    """
    stored = Config.from_hf(fields, tuple(fields))
    old, new = (one.grid for one in (stored, config))
    first = int(config.class_token)

    def resized(table: np.ndarray) -> np.ndarray:  # [N, D]
        grid = resize_grid(table[first:].reshape(*old, -1), new)
        return np.concatenate([table[:first], grid.reshape(-1, table.shape[-1])])

    return {"embeddings/position/embedding": resized}


class Embeddings(nnx.Module):
    """Patches behind a class token (CLIP), with positions, normalized (CLIP)."""

    def __init__(self, config: Config):
        fields, width, patch = config.fields, config.fields["hidden_size"], config.patch
        first, bias = int(config.class_token), not config.class_token
        rows, columns = config.grid
        self.patch = PatchEmbedding(fields["num_channels"], patch, width, STD, bias)
        self.position = Embedding(first + rows * columns, width, "positions", STD, decay=False)
        token = Leaf((width,), ("embed",), std=STD, decay=False)
        self.class_token = parameter(token) if config.class_token else None
        self.norm = LayerNorm(width, fields["layer_norm_eps"]) if config.class_token else None
        self.image_size = config.image_size

    def __call__(self, batch: Batch) -> jax.Array:
        pixels = batch["pixel_values"]
        if pixels.shape[2:] != self.image_size:
            raise UserError(
                f"The images are {pixels.shape[2]} x {pixels.shape[3]} pixels; the model takes "
                f"{self.image_size[0]} x {self.image_size[1]}.",
                f"Resize them, or set model.image_size={pixels.shape[2]}.",
            )
        x = self.patch(pixels)  # [B, N, D]
        if self.class_token is not None:
            token = jnp.broadcast_to(self.class_token[...], (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], axis=1)
        x = x + self.position.embedding[...]
        return x if self.norm is None else self.norm(x)


class Stem(nnx.Module):
    """Stem: the embeddings; every patch attends to every other."""

    def __init__(self, config: Config):
        fields, patch = config.fields, config.patch
        self.embeddings = NaflexEmbeddings(fields, patch) if config.naflex else Embeddings(config)
        self.needs = needs_of(config.fields)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | None]:
        x = self.embeddings(batch)
        if (mask := padding_mask(batch)) is not None:
            return x, mask
        kernel = compute.kernel(self.needs, x.shape[:2])
        ones = jnp.ones(x.shape[:2], jnp.int32)
        return x, None if kernel is None else make_mask(ones, kernel=kernel)


class AttentionPool(nnx.Module):
    """Vector of an image: attention over its patches from a learned query, then an MLP.

    Source: Zhai et al. (2022), https://arxiv.org/abs/2106.04560, section 2.3.
    """

    def __init__(self, fields: Mapping[str, Any]):
        width = fields["hidden_size"]
        axes = ("ones", "query", "embed")
        self.query = parameter(Leaf((1, 1, width), axes, std=STD, decay=False))
        self.input = Linear(width, 3 * width, ("embed", "heads"), STD)  # of query, key and value
        self.output = Linear(width, width, ("heads", "embed"), STD)
        self.mlp = Mlp(fields)
        self.heads = fields["num_attention_heads"]

    def __call__(self, x: jax.Array, mask: Mask | None) -> jax.Array:
        width = x.shape[-1]
        assert self.input.bias is not None
        kernel, bias = self.input.kernel[...], self.input.bias[...]  # [D, 3D], [3D]
        query = linear(self.query[0], kernel[:, :width], bias[:width])  # [1, D]
        query = jnp.broadcast_to(query, (len(x), 1, width))
        key, value = jnp.split(linear(x, kernel[:, width:], bias[width:]), 2, axis=-1)
        mixed = attention(query, key, value, mask, AttentionOptions(self.heads))
        return self.mlp(self.output(mixed), None)[:, 0]


class Top(nnx.Module):
    """Stream and vector of each image: `pooler_output` [B, D], or `image_embeds`.

    Args:
        config: the tower's.
        projected: whether the vector is taken on into the common space.
    """

    def __init__(self, config: Config, projected: bool):
        fields, width = config.fields, config.fields["hidden_size"]
        self.norm = LayerNorm(width, fields["layer_norm_eps"])
        self.pooler = AttentionPool(fields) if fields.get("vision_use_head") else None
        self.head = projection(fields) if projected else None
        self.class_token = config.class_token

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = None
        if self.class_token:  # only what is read of the stream is normalized
            pooled = self.norm(x[:, 0])
        else:
            x = self.norm(x)
            if self.pooler is not None:
                pooled = self.pooler(x, padding_mask(batch))
        outputs = {"last_hidden_state": x}
        if self.head is not None and pooled is not None:
            return outputs | {"image_embeds": self.head(pooled)}
        return outputs if pooled is None else outputs | {"pooler_output": pooled}


class Classifier(nnx.Module):
    """Class scores from the mean of the patches: `logits` [B, C]; no other output is computed."""

    def __init__(self, config: Config, num_labels: int):
        fields, width = config.fields, config.fields["hidden_size"]
        self.norm = LayerNorm(width, fields["layer_norm_eps"])
        self.pooler = AttentionPool(fields) if fields.get("vision_use_head") else None
        self.head = Linear(width, num_labels, ("embed", "labels"), STD)
        self.class_token = config.class_token

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        patches = x[:, 1:] if self.class_token else self.norm(x)  # [B, N, D]
        own = batch.get("pixel_attention_mask")  # [B, N]
        if own is None:
            mean = patches.mean(1)
        else:
            own = own[..., None].astype(patches.dtype)
            mean = (patches * own).sum(1) / own.sum(1)
        return {"logits": self.head(mean).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower under a head; `image_classification` is CLIP's and SigLIP's."""
    blocks = (Part(Block(config.fields)),) * config.fields["num_hidden_layers"]
    classifies = head == "image_classification"
    top = Classifier(config, num_labels or 2) if classifies else Top(config, head is not None)
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top))}


FAMILY = Family(
    "clip_vision", Config, MODEL_TYPES, TENSORS, towers, text=False, images=True, refits=refits
)
