"""SegFormer: a pyramid of transformers over ever fewer pixels, and a class for each pixel.

A stage makes the image smaller by an overlapping convolution, and its blocks attend from every
pixel to fewer ones. A block of the tower is a block of a stage, the first of a stage with what
makes the image smaller. Positions come of the convolutions, so images of any size fit.

Source: Xie et al. (2021), https://arxiv.org/abs/2105.15203. The computation follows `transformers`'
`modeling_segformer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.family import ComposedFamily, Family
from jaxft.models.layers.attention import Mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps, Source
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.vision import (
    BatchNorm,
    Convolution,
    Size,
    channels_first,
    channels_last,
    drop_path,
    resize_linear,
    rising_rates,
)
from jaxft.models.tower.stages import Unit, units_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import (
    check_activation,
    check_divides,
    check_lists,
    check_numbers,
)
from jaxft.models.weights.hf_config import HfConfig
from jaxft.models.weights.names import Name, batch_norm, dense, norm
from jaxft.models.weights.tensor_names import BareNames, within

HEAD, SEGMENTS = "image_classification", "semantic_segmentation"
MODEL_TYPES: dict[str, dict[str | None, str]] = {
    "segformer": {
        None: "SegformerModel",
        HEAD: "SegformerForImageClassification",
        SEGMENTS: "SegformerForSemanticSegmentation",
    }
}
NORM_EPS = 1e-5  # of every norm, whatever config.json says
PUBLISHED: Size = (512, 512)  # pixels of the images of most checkpoints; any size fits
LISTS = ("depths", "sr_ratios", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "num_encoder_blocks": 4,
    "depths": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "hidden_sizes": [32, 64, 160, 256],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "drop_path_rate": 0.1,
    "decoder_hidden_size": 256,
}
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")


class Config(HfConfig):
    """Config of a SegFormer."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": False,
        "reshape_last_stage": True,
    }
    UNREAD: ClassVar[tuple[str, ...]] = (
        "downsampling_rates",  # of older files; they follow from the strides
        "image_size",  # of pretraining
        "layer_norm_eps",
        "semantic_loss_ignore_index",  # the task's
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        sizes = ("num_channels", "decoder_hidden_size")
        own = cls._read(fields, DEFAULTS, sizes, ignore)
        check_lists(own, LISTS, "hidden_sizes")
        for name in LISTS:
            check_numbers(name, own[name])
        if own["num_encoder_blocks"] != len(own["hidden_sizes"]):
            raise UserError(
                "config.json: hidden_sizes must be a list of num_encoder_blocks numbers."
            )
        for width, heads in zip(own["hidden_sizes"], own["num_attention_heads"], strict=True):
            check_divides("hidden_sizes", width, heads, "heads")
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        return cls(fields["model_type"], own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(RATES, rate)

    @property
    def image_size(self) -> Size:
        """Return the height and width of the images of most checkpoints."""
        return PUBLISHED

    def with_image_size(self, size: int) -> Self:
        """Return the same config, since images of any size fit."""
        del size
        return self


# The image; and the ends of the earlier stages beside it, where they are read behind the blocks.
Stream = jax.Array | tuple[jax.Array, tuple[jax.Array, ...]]


class Patches(nnx.Module):
    """Overlapping patches as pixels of a smaller image, normalized: [B, H, W, I] -> [B, h, w, D].

    Args:
        config: the model's.
        stage: whose.
    """

    def __init__(self, config: Config, stage: int):
        own = config.fields
        inside = own["hidden_sizes"][stage - 1] if stage else own["num_channels"]
        width, side = own["hidden_sizes"][stage], own["patch_sizes"][stage]
        std = own["initializer_range"]
        self.convolution = Convolution(inside, width, side, own["strides"][stage], std=std)
        self.norm = LayerNorm(width, NORM_EPS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.convolution(x))


class Stem(nnx.Module):
    """Stem: the patches of `pixel_values` [B, C, H, W]."""

    def __init__(self, config: Config, keeps: bool):
        self.patches = Patches(config, 0)
        self.channels, self.keeps = config.fields["num_channels"], keeps

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[Stream, None]:
        pixels = channels_last(batch["pixel_values"], self.channels)
        x = self.patches(pixels.astype(compute.dtype))
        return (x, ()) if self.keeps else x, None


class Attention(AttentionMaps):
    """Attention of every pixel over those of a smaller image: [B, H, W, D] -> [B, H, W, D].

    Args:
        config: the model's.
        stage: whose block it is of.
    """

    def __init__(self, config: Config, stage: int):
        own = config.fields
        width, heads, std = (
            own["hidden_sizes"][stage],
            own["num_attention_heads"][stage],
            own["initializer_range"],
        )
        super().__init__(width, heads, std, own["attention_probs_dropout_prob"])
        self.norm = LayerNorm(width, NORM_EPS)
        ratio, none = own["sr_ratios"][stage], ((0, 0), (0, 0))
        reduction = Convolution(width, width, ratio, ratio, none, std=std)
        self.reduction = reduction if ratio > 1 else None
        self.reduced_norm = LayerNorm(width, NORM_EPS) if ratio > 1 else None

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        read = x = self.norm(x)
        if self.reduction is not None and self.reduced_norm is not None:
            read = self.reduced_norm(self.reduction(x))
        if not read.size:
            raise UserError(f"The images are too small: {x.shape[1]} x {x.shape[2]} patches.")
        rows, width = len(x), x.shape[-1]
        pixels = x.reshape(rows, -1, width)
        mask = Mask(jnp.zeros(pixels.shape[:2], jnp.int32), None)
        out, _ = self.attend(pixels, Source(read.reshape(rows, -1, width), mask), keys)
        return out.reshape(x.shape)


class Mlp(nnx.Module):
    """A map up, a convolution of each channel, an activation and a map down, of a normalized input.

    Args:
        config: the model's.
        stage: whose block it is of.
    """

    def __init__(self, config: Config, stage: int):
        own = config.fields
        width, std = own["hidden_sizes"][stage], own["initializer_range"]
        inner = width * own["mlp_ratios"][stage]
        self.norm = LayerNorm(width, NORM_EPS)
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.convolution = Convolution(inner, inner, 3, std=std, alone=True)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.activation, self.rate = own["hidden_act"], own["hidden_dropout_prob"]

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        inner = self.convolution(self.up(self.norm(x), keys.block))
        first, second = keys.split(2)
        inner = dropout(ACTIVATIONS[self.activation](inner), self.rate, first.own)
        return dropout(self.down(inner, keys.block), self.rate, second.own)


class Block(nnx.Module):
    """Attention, then MLP, each added to its input: [B, H, W, D] -> [B, H, W, D].

    Args:
        config: the model's.
        unit: which block it is; the first of a stage makes the image smaller before.
        keeps: whether the ends of stages are read behind the blocks.
    """

    def __init__(self, config: Config, unit: Unit, keeps: bool):
        stage, own = unit.stage, config.fields
        before = LayerNorm(own["hidden_sizes"][stage - 1], NORM_EPS)
        self.stage_norm = before if unit.shrinks else None
        self.patches = Patches(config, stage) if unit.shrinks else None
        self.attention = Attention(config, stage)
        self.mlp = Mlp(config, stage)
        self.rate, self.keeps = own["hidden_dropout_prob"], keeps

    def __call__(
        self,
        stream: Stream,
        context: None,
        key: jax.Array | None,
        cache: BlockCache,
        drop: jax.Array | float,
    ) -> tuple[Stream, BlockCache]:
        x, ends = (stream, ()) if isinstance(stream, jax.Array) else stream
        attention, output, mlp, first, second = block_keys(key, 5)
        if self.stage_norm is not None and self.patches is not None:
            x = self.stage_norm(x)
            ends = (*ends, x) if self.keeps else ends
            x = self.patches(x)
        branch = dropout(self.attention(x, attention), self.rate, output.own)
        x += drop_path(branch, drop, first.own)
        x += drop_path(self.mlp(x, mlp), drop, second.own)
        return (x, ends) if self.keeps else x, cache


class Encoder(nnx.Module):
    """Top of a bare model: the normalized pixels of the last stage, [B, D, h, w]."""

    def __init__(self, config: Config):
        self.norm = LayerNorm(config.fields["hidden_sizes"][-1], NORM_EPS)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"last_hidden_state": channels_first(self.norm(x))}


class Classifier(nnx.Module):
    """Top of an image classifier: `logits` [B, C] of the mean of the last stage's pixels."""

    def __init__(self, config: Config, labels: int):
        width, std = config.fields["hidden_sizes"][-1], config.fields["initializer_range"]
        self.norm = LayerNorm(width, NORM_EPS)
        self.head = Linear(width, labels, ("embed", "labels"), std)

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.norm(x).mean((1, 2))).astype(jnp.float32)}


class Decoder(nnx.Module):
    """Classes of pixels by the ends of all stages, as large as the first: [B, C, h, w] float32."""

    def __init__(self, config: Config, labels: int):
        own = config.fields
        width, std = own["decoder_hidden_size"], own["initializer_range"]
        for stage, inside in enumerate(own["hidden_sizes"]):
            setattr(self, f"stage_{stage}", Linear(inside, width, ("embed", "mlp"), std))
        joined = width * len(own["hidden_sizes"])
        self.fuse = Convolution(joined, width, 1, bias=False, std=std)
        self.norm = BatchNorm(width)
        self.classes = Convolution(width, labels, 1, std=std)
        self.rate = own["classifier_dropout_prob"]

    def __call__(self, ends: Sequence[jax.Array], key: jax.Array | None) -> jax.Array:
        size = ends[0].shape[1], ends[0].shape[2]
        maps = [
            resize_linear(getattr(self, f"stage_{stage}")(end), size)
            for stage, end in enumerate(ends)
        ]
        x = jax.nn.relu(self.norm(self.fuse(jnp.concatenate(maps[::-1], -1))))
        x = self.classes(dropout(x, self.rate, key))
        return channels_first(x).astype(jnp.float32)


class Segmenter(nnx.Module):
    """Top of a segmenter: `logits` [B, C, H / 4, W / 4]."""

    def __init__(self, config: Config, labels: int):
        self.norm = LayerNorm(config.fields["hidden_sizes"][-1], NORM_EPS)
        self.head = Decoder(config, labels)

    def __call__(
        self,
        stream: tuple[jax.Array, tuple[jax.Array, ...]],
        batch: Batch,
        key: jax.Array | None,
    ) -> dict[str, jax.Array]:
        x, ends = stream
        return {"logits": self.head((*ends, self.norm(x)), key)}


TOPS = {HEAD: Classifier, SEGMENTS: Segmenter}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head; blocks of a stage but its first are one object."""
    units, keeps = list(units_of(config.fields["depths"])), head == SEGMENTS
    firsts = {unit: Part(Block(config, unit, keeps)) for unit in units if unit.number < 2}
    plain = {unit.stage: part for unit, part in firsts.items() if not unit.shrinks}
    blocks = tuple(firsts[unit] if unit.shrinks else plain[unit.stage] for unit in units)
    top = Encoder(config) if head is None else TOPS[head](config, num_labels or 2)
    rates = {"drop": rising_rates(config.fields["drop_path_rate"], len(units))}
    stem = Part(Stem(config, keeps))
    return {"vision": Tower(stem, blocks, Part(top), numbers=rates, uncached=keeps)}


PATCH_NAMES = (*dense("proj", "convolution"), *norm("layer_norm", "norm"))
BLOCK_NAMES = (
    *norm("layer_norm_1", "attention/norm"),
    *dense("attention.self.query", "attention/query"),
    *dense("attention.self.key", "attention/key"),
    *dense("attention.self.value", "attention/value"),
    *dense("attention.self.sr", "attention/reduction"),
    *norm("attention.self.layer_norm", "attention/reduced_norm"),
    *dense("attention.output.dense", "attention/output"),
    *norm("layer_norm_2", "mlp/norm"),
    *dense("mlp.dense1", "mlp/up"),
    *dense("mlp.dwconv.dwconv", "mlp/convolution"),
    *dense("mlp.dense2", "mlp/down"),
)


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the table of names of a SegFormer without its head."""
    last = len(config.fields["depths"]) - 1
    lines = [
        *within(PATCH_NAMES, "encoder.patch_embeddings.0.", "patches/"),
        *norm(f"encoder.layer_norm.{last}", "norm"),
    ]
    for number, unit in enumerate(units_of(config.fields["depths"])):
        ours = f"blocks/{number}/"
        lines += within(BLOCK_NAMES, f"encoder.block.{unit.stage}.{unit.number}.", ours)
        if unit.shrinks:
            lines += norm(f"encoder.layer_norm.{unit.stage - 1}", f"{ours}stage_norm")
            hf = f"encoder.patch_embeddings.{unit.stage}."
            lines += within(PATCH_NAMES, hf, f"{ours}patches/")
    return tuple(lines)


def decoder_names(config: Config) -> tuple[Name, ...]:
    """Return the table of names of the head for pixels; two of its maps are convolutions."""
    stages = range(len(config.fields["depths"]))
    return (
        *(n for s in stages for n in dense(f"decode_head.linear_c.{s}.proj", f"head/stage_{s}")),
        *dense("decode_head.linear_fuse", "head/fuse"),
        *batch_norm("decode_head.batch_norm", "head/norm"),
        *dense("decode_head.classifier", "head/classes"),
    )


IN_MEMORY = (
    (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"encoder\.block\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
    (r"layer_norm_1\.", "layernorm_before."),
    (r"layer_norm_2\.", "layernorm_after."),
    (r"attention\.self\.query", "attention.q_proj"),
    (r"attention\.self\.key", "attention.k_proj"),
    (r"attention\.self\.value", "attention.v_proj"),
    (r"attention\.self\.sr", "attention.sequence_reduction.sequence_reduction"),
    (r"attention\.self\.layer_norm", "attention.sequence_reduction.layer_norm"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.dense(\d)", r"mlp.fc\1"),
    (r"decode_head\.linear_c\.", "decode_head.linear_projections."),
)


@dataclass(frozen=True)
class SegformerNames(BareNames):
    """Tensor names of a SegFormer, whose modules transformers 5 names otherwise than files do."""

    def in_memory(self, name: str, model_type: str) -> str:
        for stored, module in IN_MEMORY:
            name = re.sub(stored, module, name)
        return name


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the SegFormers with a config.json's stages."""
    del families, from_two
    config = Config.from_hf(fields, tuple(fields))
    tensors = SegformerNames(
        {"segformer": names_of(config)},
        {HEAD: dense("classifier", "head"), SEGMENTS: decoder_names(config)},
        (r"classifier\..*", r"decode_head\..*"),
        prefixes={"segformer": "segformer."},
    )
    return Family("segformer", Config, MODEL_TYPES, tensors, towers, text=False, images=True)


FAMILY = ComposedFamily("segformer", Config, MODEL_TYPES, compose)
