"""DINOv3: a ViT that rotates queries and keys of patches by where they lie in the image.

Class token and registers are not rotated. Images of any size fit: the coordinates of a patch are
shares of the image's height and width.

Source: Siméoni et al. (2025), https://arxiv.org/abs/2508.10104; the computation follows
`transformers`' `modeling_dinov3_vit.py`, and the classifier, which `transformers` does not have,
the linear one of https://github.com/facebookresearch/dinov3: over the class token and the mean of
the patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.vit.config import Config
from jaxft.models.families.vit.vit import Classifier, Encoder, Join
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import AttentionOptions, Mask, cached_attention, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import (
    Keys,
    LayerNorm,
    Linear,
    block_keys,
    split_key,
    tokens,
)
from jaxft.models.layers.rotary import rotate
from jaxft.models.layers.vision import PatchEmbedding, Size, grid_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import BareNames

HEAD = "image_classification"
MODEL_TYPES = {"dinov3_vit": architectures("DINOv3ViT", HEAD)}
NAMES = (
    Name("embeddings.cls_token", "embeddings/class_token"),
    Name("embeddings.mask_token", "embeddings/mask_token"),
    Name("embeddings.register_tokens", "embeddings/register_tokens"),
    *dense("embeddings.patch_embeddings", "embeddings/patch"),
    *norm("layer.{i}.norm1", "blocks/{i}/attention/norm"),
    *dense("layer.{i}.attention.q_proj", "blocks/{i}/attention/query"),
    *dense("layer.{i}.attention.k_proj", "blocks/{i}/attention/key"),
    *dense("layer.{i}.attention.v_proj", "blocks/{i}/attention/value"),
    *dense("layer.{i}.attention.o_proj", "blocks/{i}/attention/output"),
    Name("layer.{i}.layer_scale1.lambda1", "blocks/{i}/attention/join/layer_scale"),
    *norm("layer.{i}.norm2", "blocks/{i}/mlp/norm"),
    *dense("layer.{i}.mlp.gate_proj", "blocks/{i}/mlp/gate"),
    *dense("layer.{i}.mlp.up_proj", "blocks/{i}/mlp/up"),
    *dense("layer.{i}.mlp.down_proj", "blocks/{i}/mlp/down"),
    Name("layer.{i}.layer_scale2.lambda1", "blocks/{i}/mlp/join/layer_scale"),
    *norm("norm", "norm"),
)
UNUSED = (
    r"embeddings\.register_tokens",  # an empty tensor where there are none
    r"rope_embeddings\.inv_freq",  # computed
    r"classifier\..*",
)


@dataclass(frozen=True)
class Dinov3Names(BareNames):
    """Tensor names of a DINOv3, whose modules transformers 5 names otherwise than files do."""

    def canonical(self, name: str) -> str:
        return name.removeprefix("model.")

    def in_memory(self, name: str, model_type: str) -> str:
        return f"model.{name}" if name.startswith("layer.") else name


TENSORS = Dinov3Names(
    {"dinov3_vit": NAMES},
    {HEAD: dense("classifier", "head")},
    UNUSED,
    fresh=("head/", "embeddings/mask_token"),
    prefixes={"dinov3_vit": ""},
)


class Embeddings(nnx.Module):
    """Class token, registers and patches: [B, C, H, W] -> [B, T, D]."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]

        self.patch = PatchEmbedding(own["num_channels"], config.patch, width, std)
        self.class_token = tokens(1, width, std)
        registers = own["num_register_tokens"]
        self.register_tokens = tokens(registers, width, std) if registers else None
        # It stood for hidden patches in pretraining: nothing reads it, and it is handed back.
        self.mask_token = tokens(1, width, 0.0)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        first = [t for t in (self.class_token, self.register_tokens) if t is not None]
        spread = [jnp.broadcast_to(t[...], (len(pixels), *t.shape[1:])) for t in first]
        return jnp.concatenate([*spread, self.patch(pixels)], axis=1)


@dataclass(frozen=True)
class Places:
    """Rotary embedding of patches by the coordinates of their centers, from -1 to 1.

    Args:
        width: K of a head; a quarter of it has the wavelengths of the height, and of the width.
        theta: the base of the wavelengths.
        shift, jitter, rescale: how far coordinates move at random in training, all patches alike:
            by up to so much, each axis by a factor up to so much, both by one; None for not.
    """

    width: int
    theta: float
    shift: float | None
    jitter: float | None
    rescale: float | None

    def waves(self, grid: Size, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Compute cosine and sine [1, N, 1, K / 2] float32 of the patches, row by row.

        Args:
            grid: how many patches there are down and across.
            key: moves the coordinates at random; None for their true values.
        """
        down, across = (
            np.arange(0.5, count, dtype=np.float32) / np.float32(count) * 2 - 1 for count in grid
        )
        pairs = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1).reshape(-1, 2)
        coordinates = self.moved(jnp.asarray(pairs), key)  # [N, 2]
        steps = np.arange(0, 1, 4 / self.width, dtype=np.float32)
        frequencies = np.float32(1) / np.float32(self.theta) ** steps  # [K / 4]
        angles = np.float32(2 * math.pi) * coordinates[:, :, None] * frequencies
        angles = angles.reshape(1, len(pairs), 1, -1)
        return jnp.cos(angles), jnp.sin(angles)

    def moved(self, coordinates: jax.Array, key: jax.Array | None) -> jax.Array:
        """Move coordinates [N, 2] at random; without a key they stay."""
        if key is None:
            return coordinates
        keys = jax.random.split(key, 3)
        if self.shift is not None:
            far = jax.random.uniform(keys[0], (1, 2), minval=-self.shift, maxval=self.shift)
            coordinates = coordinates + far
        for most, own, shape in ((self.jitter, keys[1], (1, 2)), (self.rescale, keys[2], (1, 1))):
            if most is not None:
                reach = abs(math.log(most))
                factor = jax.random.uniform(own, shape, minval=-reach, maxval=reach)
                coordinates = coordinates * jnp.exp(factor)
        return coordinates


def places_of(config: Config) -> Places:
    """Return the rotary embedding that a config describes."""
    own = config.fields
    moves = [own[f"pos_embed_{name}"] for name in ("shift", "jitter", "rescale")]
    return Places(own["hidden_size"] // own["num_attention_heads"], own["rope_theta"], *moves)


class Context(NamedTuple):
    """Context that every block reads beside the stream.

    Attributes:
        mask: of the attention; None where all positions see all.
        cosine, sine: the waves of all positions, [1, T, 1, K / 2] float32.
    """

    mask: Mask | None
    cosine: jax.Array
    sine: jax.Array


class Stem(nnx.Module):
    """Stem: the embeddings and the waves; all positions of an image attend to each other."""

    def __init__(self, config: Config):
        own, heads = config.fields, config.fields["num_attention_heads"]
        self.embeddings = Embeddings(config)
        self.places = places_of(config)
        self.needs = Needs(heads, heads, self.places.width, own["attention_dropout"])

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Context]:
        pixels = batch["pixel_values"]
        image = pixels.shape[2:]
        grid = grid_of(image, self.embeddings.patch.patch)
        if min(grid) < 1:
            raise UserError(f"The images are {image[0]} x {image[1]}, smaller than a patch.")
        x = self.embeddings(pixels)
        cosine, sine = self.places.waves(grid, key)
        still = ((0, 0), (x.shape[1] - cosine.shape[1], 0), (0, 0), (0, 0))
        cosine, sine = jnp.pad(cosine, still, constant_values=1.0), jnp.pad(sine, still)
        kernel = compute.kernel(self.needs, x.shape[:2])
        segments = jnp.zeros(x.shape[:2], jnp.int32)
        mask = None if kernel is None else make_mask(segments, kernel=kernel)
        return x, Context(mask, cosine, sine)


class Attention(nnx.Module):
    """Self-attention over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        inward, outward = ("embed", "heads"), ("heads", "embed")
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.query = Linear(width, width, inward, std, own["query_bias"])
        self.key = Linear(width, width, inward, std, own["key_bias"])
        self.value = Linear(width, width, inward, std, own["value_bias"])
        self.output = Linear(width, width, outward, std, own["proj_bias"])
        self.join = Join(config)
        self.heads, self.rate = own["num_attention_heads"], own["attention_dropout"]

    def __call__(self, x: jax.Array, context: Context, keys: Keys) -> jax.Array:
        weights_key, join_key = split_key(keys.own, 2)
        normal = self.norm(x)

        def placed(projection: Linear) -> jax.Array:
            flat = projection(normal, keys.block)
            heads = flat.reshape(*flat.shape[:2], self.heads, -1)  # [B, T, H, K]
            return rotate(heads, (context.cosine, context.sine)).reshape(flat.shape)

        mixed, _ = cached_attention(
            placed(self.query),
            placed(self.key),
            self.value(normal, keys.block),
            context.mask,
            None,
            AttentionOptions(self.heads, self.rate, weights_key),
        )
        return self.join(x, self.output(mixed, keys.block), join_key)


class Mlp(nnx.Module):
    """A map up, gated or not, and a map down over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        bias, up = own["mlp_bias"], ("embed", "mlp")
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.gate = Linear(width, inner, up, std, bias) if own["use_gated_mlp"] else None
        self.up = Linear(width, inner, up, std, bias)
        self.down = Linear(inner, width, ("mlp", "embed"), std, bias)
        self.join = Join(config)
        self.activation = own["hidden_act"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        normal, activation = self.norm(x), ACTIVATIONS[self.activation]
        inner = self.up(normal, keys.block)  # [B, T, F]
        if self.gate is None:
            inner = activation(inner)
        else:
            inner = activation(self.gate(normal, keys.block)) * inner
        return self.join(x, self.down(inner, keys.block), keys.own)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def __call__(
        self, x: jax.Array, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        return self.mlp(self.attention(x, context, attention_keys), mlp_keys), cache


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    top = Classifier(config, num_labels or 2) if head else Encoder(config)
    blocks = (Part(Block(config)),) * config.fields["num_hidden_layers"]
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top))}


FAMILY = Family("dinov3", Config, MODEL_TYPES, TENSORS, towers, text=False, images=True)
