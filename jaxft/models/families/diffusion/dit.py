"""DiT: a transformer over the patches of a noisy image, told the step of noise and the class.

Each block's norms are scaled and shifted, and its branches gated, by an embedding of step and class
that is the block's own; the top reads the first block's.

Source: Peebles and Xie (2022), https://arxiv.org/abs/2212.09748. The computation follows
`diffusers`' `dit_transformer_2d.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.diffusion.modules import (
    STD,
    StepEmbedding,
    grid_sinusoids,
    modulated,
    sinusoids,
    step_names,
    unpatched,
)
from jaxft.models.family import Family
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Embedding, Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.vision import PatchEmbedding, grid_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import check_choices, check_numbers
from jaxft.models.weights.hf_config import DIFFUSERS_FIELDS, HfConfig
from jaxft.models.weights.names import dense, embedding, norm
from jaxft.models.weights.tensor_names import TensorNames

MODEL_TYPE = "DiTTransformer2DModel"
HEAD = "diffusion"
FEATURES = 256  # of a step, before it is embedded
EPS = 1e-6  # of norms without a scale
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
SIZES = (
    "attention_head_dim",
    "in_channels",
    "num_layers",
    "num_embeds_ada_norm",
    "patch_size",
    "sample_size",
)
GELUS = {"gelu": "gelu", "gelu-approximate": "gelu_new"}


class Config(HfConfig):
    """Config of a DiT."""

    FIXED: ClassVar[Mapping[str, Any]] = {"norm_type": "ada_norm_zero", "upcast_attention": False}
    UNREAD: ClassVar[tuple[str, ...]] = (*DIFFUSERS_FIELDS, "norm_num_groups")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, SIZES, ignore)
        check_choices("activation_fn", [own["activation_fn"]], GELUS)
        check_numbers("out_channels", [own["out_channels"] or own["in_channels"]])
        if (own["num_attention_heads"] * own["attention_head_dim"]) % 4:
            raise UserError("config.json: the width of a DiT must be a multiple of 4.")
        return cls(MODEL_TYPE, own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(["dropout"], rate)

    @property
    def width(self) -> int:
        """Return D, the width of the stream."""
        return self.fields["num_attention_heads"] * self.fields["attention_head_dim"]

    @property
    def out_channels(self) -> int:
        """Return the channels of what is predicted."""
        return self.fields["out_channels"] or self.fields["in_channels"]


NAMES = (
    *dense("pos_embed.proj", "embeddings/patch"),
    *step_names("transformer_blocks.{i}.norm1.emb.timestep_embedder", "blocks/{i}/condition/step"),
    *embedding(
        "transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table",
        "blocks/{i}/condition/classes",
    ),
    *dense("transformer_blocks.{i}.norm1.linear", "blocks/{i}/modulation"),
    *dense("transformer_blocks.{i}.attn1.to_q", "blocks/{i}/attention/query"),
    *dense("transformer_blocks.{i}.attn1.to_k", "blocks/{i}/attention/key"),
    *dense("transformer_blocks.{i}.attn1.to_v", "blocks/{i}/attention/value"),
    *dense("transformer_blocks.{i}.attn1.to_out.0", "blocks/{i}/attention/output"),
    *norm("transformer_blocks.{i}.norm3", "blocks/{i}/mlp/norm"),
    *dense("transformer_blocks.{i}.ff.net.0.proj", "blocks/{i}/mlp/up"),
    *dense("transformer_blocks.{i}.ff.net.2", "blocks/{i}/mlp/down"),
    *dense("proj_out_1", "modulation"),
    *dense("proj_out_2", "output"),
)
TENSORS = TensorNames({MODEL_TYPE: NAMES}, {}, (r"pos_embed\.pos_embed",), fresh=())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Condition:
    """Condition that every block reads.

    Args:
        features: of the step of each image, [B, 256] float32.
        labels: class of each image, [B] int32; the last one is none.
        mask: what computes attention; None where XLA does.
    """

    features: jax.Array
    labels: jax.Array
    mask: Mask | None


def condition_of(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Return the features of the steps of a batch, and its classes."""
    features = sinusoids(batch["timestep"], FEATURES, flipped=True, shift=1.0)
    return features, batch["class_labels"].astype(jnp.int32)


class Stem(nnx.Module):
    """Stem: patches of `sample` [B, C, H, W] with fixed positions, and the condition."""

    def __init__(self, config: Config):
        own, side = config.fields, config.fields["patch_size"]
        self.embeddings = PatchHolder(own["in_channels"], (side, side), config.width)
        heads = own["num_attention_heads"]
        self.needs = Needs(heads, heads, own["attention_head_dim"])
        self.base = own["sample_size"] // side

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, Condition]:
        patch, sample = self.embeddings.patch, batch["sample"]
        grid = grid_of(sample.shape[2:], patch.patch)
        if sample.shape[2] != sample.shape[3] or sample.shape[2] % patch.patch[0]:
            raise UserError(
                f"The images are {sample.shape[2]} x {sample.shape[3]}; a DiT takes squares of "
                f"patches of {patch.patch[0]} x {patch.patch[0]}."
            )
        x = patch(sample)
        x += jnp.asarray(grid_sinusoids(x.shape[-1], grid, self.base), x.dtype)
        kernel = compute.kernel(self.needs, x.shape[:2])
        segments = jnp.zeros(x.shape[:2], jnp.int32)
        mask = None if kernel is None else make_mask(segments, kernel=kernel)
        return x, Condition(*condition_of(batch), mask)


class PatchHolder(nnx.Module):
    """Holder of the patches' embedding."""

    def __init__(self, channels: int, patch: tuple[int, int], width: int):
        self.patch = PatchEmbedding(channels, patch, width, width**-0.5)


class StepAndClass(nnx.Module):
    """Embedding of step and class: [B, D]."""

    def __init__(self, config: Config):
        classes = config.fields["num_embeds_ada_norm"] + 1  # the last is none
        self.step = StepEmbedding(FEATURES, config.width)
        self.classes = Embedding(classes, config.width, "labels", STD)

    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        table = self.classes(labels)
        return self.step(features.astype(table.dtype)) + table


class Mlp(nnx.Module):
    """A map up, an activation and a map down over a normalized and modulated input."""

    def __init__(self, config: Config):
        own, width = config.fields, config.width
        self.norm = LayerNorm(width, own["norm_eps"], affine=own["norm_elementwise_affine"])
        self.up = Linear(width, 4 * width, ("embed", "mlp"), width**-0.5)
        self.down = Linear(4 * width, width, ("mlp", "embed"), (4 * width) ** -0.5)
        self.activation, self.rate = ACTIVATIONS[GELUS[own["activation_fn"]]], own["dropout"]

    def __call__(self, x: jax.Array, shift: jax.Array, scale: jax.Array, keys: Keys) -> jax.Array:
        inner = self.activation(self.up(modulated(self.norm(x), shift, scale), keys.block))
        return self.down(dropout(inner, self.rate, keys.own), keys.block)


class Block(nnx.Module):
    """Attention and MLP, each normalized, modulated and gated: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config):
        own, width = config.fields, config.width
        self.condition = StepAndClass(config)
        self.modulation = Linear(
            width, 6 * width, ("embed", "mlp"), 0.0
        )  # a fresh block does nothing
        self.norm = LayerNorm(width, EPS, affine=False)
        bias = own["attention_bias"]
        heads, std = own["num_attention_heads"], width**-0.5
        self.attention = AttentionMaps(width, heads, std, 0.0, bias=bias)
        self.mlp = Mlp(config)
        self.rate = own["dropout"]

    def __call__(
        self, x: jax.Array, context: Condition, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        attention_keys, out_keys, mlp_keys = block_keys(key, 3)
        condition = self.condition(context.features, context.labels)
        parts = jnp.split(self.modulation(jax.nn.silu(condition), mlp_keys.block), 6, axis=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts  # [B, D] each
        out, _ = self.attention.attend(
            modulated(self.norm(x), shift, scale), context.mask, attention_keys
        )
        x += gate[:, None] * dropout(out, self.rate, out_keys.own)
        return x + mlp_gate[:, None] * self.mlp(x, mlp_shift, mlp_scale, mlp_keys), cache


class Top(nnx.Module):
    """Top: the prediction `sample` [B, C, H, W], modulated by the first block's condition."""

    def __init__(self, config: Config):
        self.condition = StepAndClass(config)
        self.modulation = Linear(config.width, 2 * config.width, ("embed", "mlp"), 0.0)
        self.norm = LayerNorm(config.width, EPS, affine=False)
        self.side = config.fields["patch_size"]
        outside = self.side**2 * config.out_channels
        self.output = Linear(config.width, outside, ("embed", "pixels"), 0.0)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        condition = jax.nn.silu(self.condition(*condition_of(batch)))
        shift, scale = jnp.split(self.modulation(condition), 2, axis=-1)
        patches = self.output(modulated(self.norm(x), shift, scale))
        rows = math.isqrt(x.shape[1])
        return {"sample": unpatched(patches, (rows, rows), self.side)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the one tower."""
    del head, num_labels
    top, blocks = Part(Top(config)), (Part(Block(config)),) * config.fields["num_layers"]
    first = {name: f"blocks/0/{name}" for name in top.leaves if name.startswith("condition/")}
    return {"denoiser": Tower(Part(Stem(config)), blocks, top, ties=first, uncached=True)}


FAMILY = Family(
    "dit", Config, {MODEL_TYPE: {HEAD: MODEL_TYPE}}, TENSORS, towers, text=False, head=("output/",)
)
