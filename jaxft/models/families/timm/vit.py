"""Vision transformers of timm, by the names that timm has for them: `timm/vit_*` of the hub.

Beside ViT there are registers, layer scale, a norm before the blocks (CLIP), patches averaged in
place of a class token (SigLIP, SO150M) and a gated MLP (the giant DINOv2).

Source: Wightman (2019), https://github.com/huggingface/pytorch-image-models; the computation
follows timm's `vision_transformer.py` and transformers' `modeling_timm_wrapper.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models.families.timm.fields import (
    HEAD,
    MODEL_TYPES,
    TimmNames,
    named_classes,
    with_classes,
)
from jaxft.models.families.timm.vit_config import Config
from jaxft.models.families.vit.parts import (
    Block,
    Join,
    check_image_size,
    resize_positions,
)
from jaxft.models.family import Family
from jaxft.models.layers.attention import AttentionOptions, Mask, attention, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cross import AttentionMaps
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Leaf, Linear, parameter, tokens
from jaxft.models.layers.vision import PatchEmbedding, rising_rates
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.hf_config import TIMM
from jaxft.models.weights.names import Name, dense, fused, norm

STD = 0.02  # of fresh kernels
MAPS = [f"blocks/{{i}}/attention/{name}" for name in ("query", "key", "value")]
NAMES = (
    Name("cls_token", "embeddings/class_token"),
    Name("reg_token", "embeddings/register_tokens"),
    Name("pos_embed", "embeddings/position"),
    *dense("patch_embed.proj", "embeddings/patch"),
    *norm("norm_pre", "embeddings/norm"),
    *norm("blocks.{i}.norm1", "blocks/{i}/attention/norm"),
    *fused("blocks.{i}.attn.qkv", *MAPS),
    *dense("blocks.{i}.attn.proj", "blocks/{i}/attention/output"),
    Name("blocks.{i}.ls1.gamma", "blocks/{i}/attention/join/layer_scale"),
    *norm("blocks.{i}.norm2", "blocks/{i}/mlp/norm"),
    *dense("blocks.{i}.mlp.fc1", "blocks/{i}/mlp/up"),
    *dense("blocks.{i}.mlp.fc2", "blocks/{i}/mlp/down"),
    Name("blocks.{i}.ls2.gamma", "blocks/{i}/mlp/join/layer_scale"),
    *norm("norm", "norm"),
    *norm("fc_norm", "pooler/norm"),
    Name("attn_pool.latent", "pooler/latent"),
    *dense("attn_pool.q", "pooler/query"),
    *fused("attn_pool.kv", "pooler/key", "pooler/value"),
    *dense("attn_pool.proj", "pooler/output"),
    *norm("attn_pool.norm", "pooler/mlp_norm"),
    *dense("attn_pool.mlp.fc1", "pooler/up"),
    *dense("attn_pool.mlp.fc2", "pooler/down"),
)


TENSORS = TimmNames({TIMM: NAMES}, {HEAD: dense("head", "head")}, (r"head\..*",))


def refits(
    config: Config, fields: Mapping[str, Any]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the function that resizes a checkpoint's positions as timm does: bicubic, smoothed."""
    own = Config.from_hf(fields, tuple(fields))

    def resized(stored: np.ndarray) -> np.ndarray:  # [1, N, D]
        return resize_positions(stored, own.specials, own.grid, config.grid, antialias=True)

    return {"embeddings/position": resized}


class Embeddings(nnx.Module):
    """Patches behind the class token and the registers, with positions: [B, N, D]."""

    def __init__(self, config: Config):
        own, width = config.fields, config.fields["embed_dim"]
        registers = own["reg_tokens"]
        self.patch = PatchEmbedding(
            own["in_chans"], config.patch, width, STD, bias=not own["pre_norm"]
        )
        self.class_token = tokens(1, width, STD) if own["class_token"] else None
        self.register_tokens = tokens(registers, width, STD) if registers else None
        self.position = tokens(config.positions, width, STD)
        self.norm = LayerNorm(width, own["eps"]) if own["pre_norm"] else None
        self.bare, self.rate = own["no_embed_class"], own["pos_drop_rate"]

    def __call__(self, pixels: jax.Array, key: jax.Array | None) -> jax.Array:
        x = self.patch(pixels)
        if self.bare:
            x = x + self.position[...]
        first = [t for t in (self.class_token, self.register_tokens) if t is not None]
        spread = [jnp.broadcast_to(t[...], (len(x), *t.shape[1:])).astype(x.dtype) for t in first]
        x = jnp.concatenate([*spread, x], axis=1)
        x = dropout(x if self.bare else x + self.position[...], self.rate, key)
        return x if self.norm is None else self.norm(x)


class Stem(nnx.Module):
    """Stem: the embeddings; all positions of an image attend to each other."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        self.image_size = config.image_size
        own, heads = config.fields, config.fields["num_heads"]
        self.needs = Needs(heads, heads, own["embed_dim"] // heads, own["attn_drop_rate"])

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Mask | None]:
        pixels = batch["pixel_values"]
        check_image_size(pixels.shape[2:], self.image_size)
        x = self.embeddings(pixels, key)
        kernel = compute.kernel(self.needs, x.shape[:2])
        segments = jnp.zeros(x.shape[:2], jnp.int32)
        return x, None if kernel is None else make_mask(segments, kernel=kernel)


class Attention(AttentionMaps):
    """Self-attention over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, rate = own["embed_dim"], own["attn_drop_rate"]
        super().__init__(width, own["num_heads"], STD, rate, bias=own["qkv_bias"])
        self.norm = LayerNorm(width, own["eps"])
        self.join = Join(width, own["init_values"], own["proj_drop_rate"])

    def __call__(
        self, x: jax.Array, mask: Mask | None, drop: jax.Array | float, keys: Keys
    ) -> jax.Array:
        weights_keys, join_keys = keys.split(2)
        out, _ = self.attend(self.norm(x), mask, weights_keys)
        return self.join(x, out, drop, join_keys)


class Mlp(nnx.Module):
    """A map up, an activation or a gate, and a map down, joined to the input."""

    def __init__(self, config: Config):
        own, width = config.fields, config.fields["embed_dim"]
        inner = int(width * own["mlp_ratio"])
        self.gated = own["gated"]
        self.norm = LayerNorm(width, own["eps"])
        self.up = Linear(width, inner, ("embed", "mlp"), STD)
        self.down = Linear(inner // 2 if self.gated else inner, width, ("mlp", "embed"), STD)
        self.join = Join(width, own["init_values"], own["proj_drop_rate"])
        self.activation = own["act_layer"]

    def __call__(self, x: jax.Array, drop: jax.Array | float, keys: Keys) -> jax.Array:
        up = self.up(self.norm(x), keys.block)  # [B, N, F]
        gate, *other = jnp.split(up, 2, axis=-1) if self.gated else (up,)
        inner = ACTIVATIONS[self.activation](gate)
        inner = inner * other[0] if other else inner
        return self.join(x, self.down(inner, keys.block), drop, keys)


def norm_of(config: Config) -> LayerNorm:
    """Build a norm of vectors."""
    return LayerNorm(config.fields["embed_dim"], config.fields["eps"])


class Pool(nnx.Module):
    """Mean of the vectors or the first of them, normalized or not: [B, N, D] -> [B, D]."""

    def __init__(self, config: Config):
        self.norm = norm_of(config) if config.norms_pooled else None
        self.averages = config.averages

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = x.mean(1) if self.averages else x[:, 0]
        return pooled if self.norm is None else self.norm(pooled)


class AttentionPool(AttentionMaps):
    """Attention over the vectors from a learned query, then an MLP: [B, N, D] -> [B, D].

    Source: Zhai et al. (2022), https://arxiv.org/abs/2106.04560, section 2.3.
    """

    def __init__(self, config: Config):
        own, width = config.fields, config.fields["embed_dim"]
        super().__init__(width, own["num_heads"], STD, 0.0)
        inner = int(width * own["mlp_ratio"])
        axes = ("ones", "latents", "embed")
        self.latent = parameter(Leaf((1, 1, width), axes, std=STD))
        self.mlp_norm = norm_of(config)
        self.up = Linear(width, inner, ("embed", "mlp"), STD)
        self.down = Linear(inner, width, ("mlp", "embed"), STD)
        self.activation = own["act_layer"]
        self.norm = norm_of(config) if config.norms_pooled else None

    def __call__(self, x: jax.Array) -> jax.Array:
        query = jnp.broadcast_to(self.query(self.latent[...]), (len(x), 1, x.shape[-1]))
        options = AttentionOptions(self.heads)
        pooled = self.output(attention(query, self.key(x), self.value(x), None, options))
        inner = ACTIVATIONS[self.activation](self.up(self.mlp_norm(pooled)))
        pooled = (pooled + self.down(inner))[:, 0]
        return pooled if self.norm is None else self.norm(pooled)


class Encoder(nnx.Module):
    """Top of a bare model: the stream, and its class token, mean or what a query reads of it.

    There is one norm, of the stream or of what is pooled.
    """

    def __init__(self, config: Config):
        own = config.fields
        self.norm = None if config.norms_pooled else norm_of(config)
        attends = own["global_pool"] == "map"
        self.pooler = AttentionPool(config) if attends else Pool(config)
        whole = own["global_pool"] == "token" or own["pool_include_prefix"]
        self.pooled_from = 0 if whole else config.prefix

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = x if self.norm is None else self.norm(x)
        return {"last_hidden_state": x, "pooler_output": self.pooler(x[:, self.pooled_from :])}


class Classifier(Encoder):
    """Top of an image classifier: `logits` [B, C]."""

    def __init__(self, config: Config, num_labels: int):
        super().__init__(config)
        self.head = Linear(config.fields["embed_dim"], num_labels, ("embed", "labels"), STD)
        self.rate = config.fields["drop_rate"]

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = super().__call__(x, batch, None)["pooler_output"]
        return {"logits": self.head(dropout(pooled, self.rate, key)).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    count = config.fields["depth"]
    top = Classifier(config, num_labels or 2) if head else Encoder(config)
    numbers = {"drop": rising_rates(config.fields["drop_path_rate"], count)}
    blocks = (Part(Block(Attention(config), Mlp(config))),) * count
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top), numbers=numbers)}


def family() -> Family:
    """Build the family of the vision transformers, which timm.py chooses and declares."""
    return Family(
        *("timm", Config, MODEL_TYPES, TENSORS, towers),
        text=False,
        images=True,
        infer_fields=with_classes,
        class_fields=named_classes,
        refits=refits,
    )
