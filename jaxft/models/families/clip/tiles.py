"""SigLIP's image tower on the tiles of an image, as Idefics3 and SmolVLM have it.

An image is N tiles of one size. Their patches stand one behind the other in the stream,
[B, N P, D], and each attends to those of its own tile.

Source: Marafioti et al. (2025), https://arxiv.org/abs/2504.05299; the computation follows
`transformers`' `modeling_idefics3.py` and `modeling_smolvlm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.clip import block as clip_block
from jaxft.models.families.clip.block import BLOCK_NAMES, STD, Attention, Mlp, needs_of, read_tower
from jaxft.models.family import Family, ModelTypes
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.modules import Embedding, LayerNorm, block_keys
from jaxft.models.layers.vision import PatchEmbedding, Size
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.hf_config import ImageConfig
from jaxft.models.weights.names import dense, embedding, norm
from jaxft.models.weights.tensor_names import TensorNames

MODEL_TYPES: ModelTypes = {"idefics3_vision": {}, "smolvlm_vision": {}}  # parts of others
DEFAULTS: dict[str, Any] = clip_block.SIGLIP | {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
SIZES = ("num_channels", "image_size", "patch_size")
# Notes of the first files to their image processor.
UNREAD = ("max_image_size", "size", "use_base_siglip")
# transformers finds the place of a patch by comparing float32 fractions of the side. In grids of
# these sides, whose fractions are not exact, it takes some patches for their neighbors.
ROUNDED = (19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62)
MOST_SIDE = 64  # patches a side, up to which that is known


class Config(ImageConfig):
    """Config of a tower of tiles."""

    FIXED = clip_block.FIXED
    UNREAD = (*clip_block.UNREAD, *UNREAD)

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = read_tower(fields, DEFAULTS, SIZES, (*ignore, *UNREAD))
        config = cls(fields["model_type"], own)
        side = config.grid[0]
        if not 0 < side <= MOST_SIDE or side in ROUNDED:
            raise UserError(
                f"config.json: image_size {own['image_size']} and patch_size {own['patch_size']} "
                f"give {side} patches a side, which is not supported."
            )
        return config

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(["attention_dropout"], rate)

    def with_image_size(self, size: int) -> Self:
        return self.with_fields(["image_size"], size)

    @property
    def patches(self) -> int:
        """Return the number of patches of a tile."""
        rows, columns = self.grid
        return rows * columns


TENSORS = TensorNames(
    dict.fromkeys(
        MODEL_TYPES,
        (
            *dense("embeddings.patch_embedding", "embeddings/patch"),
            *embedding("embeddings.position_embedding", "embeddings/position"),
            *BLOCK_NAMES,
            *norm("post_layernorm", "norm"),
        ),
    ),
    {},
    clip_block.UNUSED,
)


class Embeddings(nnx.Module):
    """Patches of every tile, with their positions in it."""

    def __init__(self, config: Config):
        fields, width = config.fields, config.fields["hidden_size"]
        self.patch = PatchEmbedding(fields["num_channels"], config.patch, width, STD)
        self.position = Embedding(config.patches, width, "positions", STD, decay=False)
        self.size = config.image_size

    def __call__(self, batch: Batch) -> jax.Array:
        pixels = batch["pixel_values"]
        check_tiles(pixels.shape, self.size)
        x = self.patch(pixels.reshape(-1, *pixels.shape[2:]))  # [B N, P, D]
        x = x + self.position.embedding[...]
        return x.reshape(len(pixels), -1, x.shape[-1])


def check_tiles(shape: tuple[int, ...], size: Size) -> None:
    """Raise a UserError unless pixels are [B, N, C, H, W] of tiles of that height and width."""
    if len(shape) != 5:
        raise UserError(
            f"The images have {len(shape)} dimensions; the model takes the tiles of each, "
            "[images, tiles, channels, height, width]."
        )
    if shape[3:] != size:
        raise UserError(
            f"The tiles are {shape[3]} x {shape[4]} pixels; the model takes {size[0]} x {size[1]}."
        )


class Stem(nnx.Module):
    """Stem: the embeddings; a mask only where a kernel is to serve."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.needs = needs_of(config.fields)
        self.patches = config.patches

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | None]:
        x = self.embeddings(batch)
        shape = x.shape[0] * x.shape[1] // self.patches, self.patches  # [B N, P]
        kernel = compute.kernel(self.needs, shape)
        ones = jnp.ones(shape, jnp.int32)
        return x, None if kernel is None else make_mask(ones, kernel=kernel)


class Block(nnx.Module):
    """Attention within each tile, then MLP: [B, N P, D] -> [B, N P, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config.fields)
        self.mlp = Mlp(config.fields)
        self.patches = config.patches

    def __call__(
        self, x: jax.Array, mask: Mask | None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        (keys,) = block_keys(key, 1)
        tiles = x.reshape(-1, self.patches, x.shape[-1])
        x = self.attention(tiles, mask, keys).reshape(x.shape)
        return self.mlp(x, key), cache


class Top(nnx.Module):
    """Normalized stream: `last_hidden_state` [B, N P, D]."""

    def __init__(self, config: Config):
        self.norm = LayerNorm(config.fields["hidden_size"], config.fields["layer_norm_eps"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"last_hidden_state": self.norm(x)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower; it has no head of its own."""
    blocks = (Part(Block(config)),) * config.fields["num_hidden_layers"]
    return {"vision": Tower(Part(Stem(config)), blocks, Part(Top(config)))}


FAMILY = Family("tiles", Config, MODEL_TYPES, TENSORS, towers, text=False, images=True)
