"""ViT and its kin: encoders of pre-norm blocks over the patches of an image.

DeiT has a second token that learns from a teacher; DINOv2 scales each branch, may gate its MLP
and resizes its positions to whatever image comes; its registers are tokens that nothing reads. The
encoder of a masked autoencoder is a ViT, and is read and exported as one.

Source: Dosovitskiy et al. (2020), https://arxiv.org/abs/2010.11929; Touvron et al. (2020),
https://arxiv.org/abs/2012.12877; He et al. (2021), https://arxiv.org/abs/2111.06377; Oquab et al.
(2023), https://arxiv.org/abs/2304.07193; Darcet et al. (2023), https://arxiv.org/abs/2309.16588.
The computation follows `transformers`' `modeling_vit.py`, `modeling_deit.py`, `modeling_dinov2.py`,
`modeling_dinov2_with_registers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.vit.config import Config
from jaxft.models.families.vit.parts import check_image_size, resize_positions
from jaxft.models.families.vit.rollout import attention_weights
from jaxft.models.families.vit.yolos_from_vit import detector
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Leaf, Linear, block_keys, parameter, tokens
from jaxft.models.layers.vision import (
    Convolution,
    PatchEmbedding,
    channels_first,
    grid_of,
    resize_grid,
)
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import BareNames

Outputs = dict[str, jax.Array]


HEAD, SEGMENTS = "image_classification", "semantic_segmentation"
AUTOENCODER = "vit_mae"
MODEL_TYPES = {
    "vit": architectures("ViT", HEAD),
    AUTOENCODER: architectures("ViT", HEAD),
    "deit": architectures("DeiT", HEAD),
    "dinov2": architectures("Dinov2", HEAD, SEGMENTS),
    "dinov2_with_registers": architectures("Dinov2WithRegisters", HEAD, SEGMENTS),
}

NAMES = (
    Name("embeddings.cls_token", "embeddings/class_token"),
    Name("embeddings.position_embeddings", "embeddings/position"),
    *dense("embeddings.patch_embeddings.projection", "embeddings/patch"),
    *dense("encoder.layer.{i}.attention.attention.query", "blocks/{i}/attention/query"),
    *dense("encoder.layer.{i}.attention.attention.key", "blocks/{i}/attention/key"),
    *dense("encoder.layer.{i}.attention.attention.value", "blocks/{i}/attention/value"),
    *dense("encoder.layer.{i}.attention.output.dense", "blocks/{i}/attention/output"),
    *norm("layernorm", "norm"),
)
VIT_NAMES = (
    *NAMES,
    Name("embeddings.distillation_token", "embeddings/distillation_token"),
    *norm("encoder.layer.{i}.layernorm_before", "blocks/{i}/attention/norm"),
    *norm("encoder.layer.{i}.layernorm_after", "blocks/{i}/mlp/norm"),
    *dense("encoder.layer.{i}.intermediate.dense", "blocks/{i}/mlp/up"),
    *dense("encoder.layer.{i}.output.dense", "blocks/{i}/mlp/down"),
    *dense("pooler.dense", "pooler"),
)
DINOV2_NAMES = (
    *NAMES,
    Name("embeddings.mask_token", "embeddings/mask_token"),
    Name("embeddings.register_tokens", "embeddings/register_tokens"),
    *norm("encoder.layer.{i}.norm1", "blocks/{i}/attention/norm"),
    Name("encoder.layer.{i}.layer_scale1.lambda1", "blocks/{i}/attention/join/layer_scale"),
    *norm("encoder.layer.{i}.norm2", "blocks/{i}/mlp/norm"),
    *dense("encoder.layer.{i}.mlp.fc1", "blocks/{i}/mlp/up"),
    *dense("encoder.layer.{i}.mlp.fc2", "blocks/{i}/mlp/down"),
    *dense("encoder.layer.{i}.mlp.weights_in", "blocks/{i}/mlp/gated_up"),
    *dense("encoder.layer.{i}.mlp.weights_out", "blocks/{i}/mlp/gated_down"),
    Name("encoder.layer.{i}.layer_scale2.lambda1", "blocks/{i}/mlp/join/layer_scale"),
)
IN_MEMORY = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    # These are ViT's and DeiT's alone.
    ("encoder.layer.", "layers."),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
UNUSED = (
    r"embeddings\.mask_token",
    r"pooler\..*",
    r"classifier\..*",
    r"(cls|distillation)_classifier\..*",
    r"decoder\..*",  # of masked image modelling, and of an autoencoder
)


@dataclass(frozen=True)
class VitNames(BareNames):
    """Tensor names of a ViT or one of its kin, whose modules transformers 5 names otherwise."""

    def in_memory(self, name: str, model_type: str) -> str:
        renamed = IN_MEMORY if model_type in ("vit", "deit") else IN_MEMORY[:4]
        for stored, module in renamed:
            name = name.replace(stored, module)
        return name


TENSORS = VitNames(
    {name: DINOV2_NAMES if name.startswith("dinov2") else VIT_NAMES for name in MODEL_TYPES},
    {HEAD: dense("classifier", "head"), SEGMENTS: dense("classifier", "head")},
    UNUSED,
    fresh=("pooler/", "head/", "embeddings/mask_token"),
    prefixes={name: f"{name}." for name in MODEL_TYPES},
)


def as_vit(fields: Mapping[str, Any], tensors: Iterable[str]) -> dict[str, Any]:
    """Return a config.json, a masked autoencoder's as that of the ViT that its encoder is."""
    del tensors
    if fields["model_type"] != AUTOENCODER:
        return dict(fields)
    alone = ("architectures", "mask_ratio", "norm_pix_loss")
    own = {n: v for n, v in fields.items() if n not in alone and not n.startswith("decoder_")}
    return own | {"model_type": "vit"}


def refits(
    config: Config, fields: Mapping[str, Any]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the function that resizes a checkpoint's positions to images of another size."""
    own = Config.from_hf(fields, tuple(fields))

    def resized(stored: np.ndarray) -> np.ndarray:  # [1, N, D]
        return resize_positions(stored, own.specials, own.grid, config.grid)

    return {"embeddings/position": resized}


class Embeddings(nnx.Module):
    """Patches, and tokens that are no patch, with their positions: [B, C, H, W] -> [B, T, D]."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]

        self.patch = PatchEmbedding(own["num_channels"], config.patch, width, std)
        self.class_token = tokens(1, width, std)
        self.distillation_token = tokens(1, width, std) if config.model_type == "deit" else None
        registers = own.get("num_register_tokens", 0)
        self.register_tokens = tokens(registers, width, 0.0) if registers else None
        self.position = tokens(config.specials + math.prod(config.grid), width, std)
        # It stood for hidden patches in pretraining: nothing reads it, and it is handed back.
        masked = config.resizes and own.get("use_mask_token", True)
        mask_token = Leaf((1, width), ("one", "embed"), decay=False)
        self.mask_token = parameter(mask_token) if masked else None
        self.specials = config.specials
        self.resizes = config.resizes
        # The later code, of the registers, smooths before it makes a grid smaller.
        self.antialias = config.model_type in ("dinov2_with_registers", "rf_detr_dinov2")
        self.rate = own["hidden_dropout_prob"]

    def __call__(self, pixels: jax.Array, key: jax.Array | None) -> jax.Array:
        def spread(tokens: nnx.Param) -> jax.Array:
            return jnp.broadcast_to(tokens[...], (len(pixels), *tokens.shape[1:]))

        first = [t for t in (self.class_token, self.distillation_token) if t is not None]
        x = jnp.concatenate([*map(spread, first), self.patch(pixels)], axis=1)
        x += self.positions(pixels.shape[2:])
        if self.register_tokens is not None:
            x = jnp.concatenate([x[:, :1], spread(self.register_tokens), x[:, 1:]], axis=1)
        return dropout(x, self.rate, key)

    def positions(self, image: tuple[int, ...]) -> jax.Array:
        """Return the positions [1, N, D] of the tokens of an image of (height, width)."""
        position = self.position[...]
        first, patches = position[:, : self.specials], position[0, self.specials :]
        grid, (count, width) = grid_of(image, self.patch.patch), patches.shape
        if not self.resizes or (math.prod(grid) == count and image[0] == image[1]):
            return position
        square = patches.astype(jnp.float32).reshape(math.isqrt(count), -1, width)
        with jax.default_matmul_precision("highest"):
            resized = resize_grid(square, grid, self.antialias).astype(position.dtype)
        return jnp.concatenate([first, resized.reshape(1, -1, width)], axis=1)


def needs_of(config: Config) -> Needs:
    """Return what the blocks ask of an attention kernel."""
    own, heads = config.fields, config.fields["num_attention_heads"]
    return Needs(heads, heads, own["hidden_size"] // heads, own["attention_probs_dropout_prob"])


class Stem(nnx.Module):
    """Stem: the embeddings; all positions of an image attend to each other."""

    def __init__(self, config: Config):
        self.needs = needs_of(config)
        self.embeddings = Embeddings(config)
        self.image_size = None if config.resizes else config.image_size

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | None]:
        pixels = batch["pixel_values"]
        image = pixels.shape[2:]
        if self.image_size is not None:
            check_image_size(image, self.image_size)
        if min(grid_of(image, self.embeddings.patch.patch)) < 1:
            raise UserError(f"The images are {image[0]} x {image[1]}, smaller than a patch.")
        x = self.embeddings(pixels, key)
        kernel = compute.kernel(self.needs, x.shape[:2])
        segments = jnp.zeros(x.shape[:2], jnp.int32)
        return x, None if kernel is None else make_mask(segments, kernel=kernel)


class Join(nnx.Module):
    """Residual sum of a branch: after dropout in ViT, scaled and dropped as a whole in DINOv2.

    Source: layer scale: Touvron et al. (2021), https://arxiv.org/abs/2103.17239; stochastic depth:
    Huang et al. (2016), https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, config: Config):
        own = config.fields
        scale = own.get("layerscale_value", 1.0)
        leaf = Leaf((own["hidden_size"],), ("embed",), mean=scale, decay=False)
        self.layer_scale = parameter(leaf) if config.resizes else None
        self.rate = own["drop_path_rate" if config.resizes else "hidden_dropout_prob"]

    def __call__(self, x: jax.Array, branch: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.layer_scale is None:
            return x + dropout(branch, self.rate, key)
        survives = dropout(jnp.ones((len(x), 1, 1), x.dtype), self.rate, key)
        return x + branch * self.layer_scale[...] * survives


class Attention(AttentionMaps):
    """Self-attention over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, heads, std = own["hidden_size"], own["num_attention_heads"], own["initializer_range"]
        rate = own["attention_probs_dropout_prob"]
        super().__init__(width, heads, std, rate, bias=own["qkv_bias"])
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.join = Join(config)

    def __call__(self, x: jax.Array, mask: Mask | None, keys: Keys) -> jax.Array:
        weights_keys, join_keys = keys.split(2)
        out, _ = self.attend(self.norm(x), mask, weights_keys)
        return self.join(x, out, join_keys.own)

    def weights(self, x: jax.Array) -> jax.Array:
        """Compute the attention weights of [B, T] by head, without dropout: [B, H, T, T]."""
        normal = self.norm(x)
        return attention_weights(self.query(normal), self.key(normal), heads=self.heads)


class Mlp(nnx.Module):
    """A map up, an activation and a map down over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        inner = own.get("intermediate_size") or int(width * own["mlp_ratio"])
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.join = Join(config)
        self.activation = own["hidden_act"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(self.norm(x), keys.block))  # [B, T, F]
        return self.join(x, self.down(inner, keys.block), keys.own)


class GatedMlp(nnx.Module):
    """As `Mlp`, with a gate in place of the activation; gate and the other half are one matrix.

    Source: Shazeer (2020), https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        # Two thirds, for there are three matrices in place of two, in eights.
        inner = (int(int(width * own["mlp_ratio"]) * 2 / 3) + 7) // 8 * 8
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.gated_up = Linear(width, 2 * inner, ("embed", "mlp"), std)
        self.gated_down = Linear(inner, width, ("mlp", "embed"), std)
        self.join = Join(config)

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        up = self.gated_up(self.norm(x), keys.block)
        gate, other = jnp.split(up, 2, axis=-1)  # [B, T, F] each
        return self.join(x, self.gated_down(jax.nn.silu(gate) * other, keys.block), keys.own)


class Block(nnx.Module):
    """Attention, then MLP: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        self.attention = Attention(config)
        self.mlp = GatedMlp(config) if config.fields.get("use_swiglu_ffn") else Mlp(config)

    def __call__(
        self, x: jax.Array, mask: Mask | None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        return self.mlp(self.attention(x, mask, attention_keys), mlp_keys), cache


class Encoder(nnx.Module):
    """Top of a bare model: the normalized stream, and its pooled first position.

    That one goes through one more map and an activation in ViT and DeiT, and not in DINOv2.
    """

    def __init__(self, config: Config):
        own = config.fields
        width = own["hidden_size"]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        pooled, axes = own.get("pooler_output_size") or width, ("embed", "pooled")
        pooler = Linear(width, pooled, axes, own["initializer_range"])
        self.pooler = None if config.resizes else pooler
        self.activation = own.get("pooler_act", "tanh")

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        x = self.norm(x)
        pooled = x[:, 0]
        if self.pooler is not None:
            pooled = ACTIVATIONS[self.activation](self.pooler(pooled))
        return {"last_hidden_state": x, "pooler_output": pooled}


class Classifier(nnx.Module):
    """Top of an image classifier: `logits` [B, C].

    It reads the class token; in DINOv2 the mean of the patches beside it.
    """

    def __init__(self, config: Config, num_labels: int):
        own = config.fields
        width = own["hidden_size"]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        read = 2 * width if config.resizes else width
        self.head = Linear(read, num_labels, ("embed", "labels"), own["initializer_range"])
        self.patches_from = 1 + own.get("num_register_tokens", 0) if config.resizes else None

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        if self.patches_from is None:
            read = self.norm(x[:, 0])  # [B, D]
        else:
            x = self.norm(x)
            read = jnp.concatenate([x[:, 0], x[:, self.patches_from :].mean(1)], -1)  # [B, 2 D]
        return {"logits": self.head(read).astype(jnp.float32)}


class Segmenter(nnx.Module):
    """Top of a segmenter, a linear map of each patch: `logits` [B, C, h, w] of the h x w patches.

    `transformers` has no such class. It is the linear head of DINOv2's own evaluation.

    Source: Oquab et al. (2023), https://arxiv.org/abs/2304.07193, section 7.4.
    """

    def __init__(self, config: Config, num_labels: int):
        own = config.fields
        self.norm = LayerNorm(own["hidden_size"], own["layer_norm_eps"])
        self.head = Convolution(own["hidden_size"], num_labels, 1, std=own["initializer_range"])
        self.patches_from = 1 + own.get("num_register_tokens", 0)
        self.patch = config.patch

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> Outputs:
        patches = self.norm(x[:, self.patches_from :])
        grid = grid_of(batch["pixel_values"].shape[2:], self.patch)
        logits = self.head(patches.reshape(len(x), *grid, -1))
        return {"logits": channels_first(logits).astype(jnp.float32)}


TOPS = {HEAD: Classifier, SEGMENTS: Segmenter}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    top = TOPS[head](config, num_labels or 2) if head else Encoder(config)
    blocks = (Part(Block(config)),) * config.fields["num_hidden_layers"]
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top))}


FAMILY = Family(
    *("vit", Config, MODEL_TYPES, TENSORS, towers),
    text=False,
    images=True,
    infer_fields=as_vit,
    for_task=detector,
    refits=refits,
)
