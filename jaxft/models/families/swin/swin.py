"""Swin: stages of attention within windows, every other block's shifted, over ever fewer pixels.

A block of the tower is a block of a stage, the first of a stage with what merges four pixels into
one before it. How far a block's windows are shifted is a number of it, so that the blocks of a
stage are one program.

Source: Liu et al. (2021), https://arxiv.org/abs/2103.14030. The computation follows `transformers`'
`modeling_swin.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.family import ComposedFamily, Family, architectures
from jaxft.models.layers.attention import AttentionOptions, Mask, attention
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Leaf, Linear, block_keys, parameter
from jaxft.models.layers.vision import PatchEmbedding, drop_path, grid_of, rising_rates
from jaxft.models.tower.stages import Unit, units_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import (
    check_activation,
    check_divides,
    check_lists,
    check_numbers,
)
from jaxft.models.weights.hf_config import ImageConfig
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import BareNames, within

HEAD = "image_classification"
MODEL_TYPES = {"swin": architectures("Swin", HEAD)}
END_EPS = 1e-5  # of the norms of patches and of merged pixels
APART = -100.0  # added to the scores of pixels that a shift has brought together
DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.1,
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
}


class Config(ImageConfig):
    """Config of a Swin."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": False,
        "use_absolute_embeddings": False,
    }
    # Of masked image modeling and of backbones, and what follows from other fields.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *("encoder_stride", "out_features", "out_indices", "stage_names"),
        *("_out_features", "_out_indices", "hidden_size", "num_layers", "path_norm"),
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, ("num_channels", "embed_dim", "window_size"), ignore)
        check_lists(own, ("num_heads",), "depths")
        check_numbers("num_heads", own["num_heads"])
        for stage, heads in enumerate(own["num_heads"]):
            check_divides("embed_dim", own["embed_dim"] * 2**stage, heads, "heads")
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        return cls("swin", own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(("hidden_dropout_prob", "attention_probs_dropout_prob"), rate)

    def with_image_size(self, size: int) -> Self:
        """Return the same config, since images of any size fit that have a window in each stage."""
        return self.with_fields(["image_size"], size)


class Stem(nnx.Module):
    """Stem: the normalized patches of `pixel_values` [B, C, H, W], which zeros make whole."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["embed_dim"], own["initializer_range"]
        self.patch = PatchEmbedding(own["num_channels"], config.patch, width, std)
        self.patch_norm = LayerNorm(width, END_EPS)
        self.rate = own["hidden_dropout_prob"]

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, None]:
        pixels = batch["pixel_values"]
        room = [-side % part for side, part in zip(pixels.shape[2:], self.patch.patch, strict=True)]
        pixels = jnp.pad(pixels, ((0, 0), (0, 0), (0, room[0]), (0, room[1])))
        x = dropout(self.patch_norm(self.patch(pixels)), self.rate, key)
        return x.reshape(len(x), *grid_of(pixels.shape[2:], self.patch.patch), -1), None


class Merge(nnx.Module):
    """A norm and a map of four pixels to one: [B, H, W, D] -> [B, H / 2, W / 2, 2 D].

    Args:
        width: D.
        std: the standard deviation of a fresh kernel.
    """

    def __init__(self, width: int, std: float):
        self.norm = LayerNorm(4 * width, END_EPS)
        self.reduction = Linear(4 * width, 2 * width, ("embed", "mlp"), std, bias=False)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        room = [side % 2 for side in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), (0, room[0]), (0, room[1]), (0, 0)))
        parts = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(jnp.concatenate(parts, -1)), key)


class Attention(AttentionMaps):
    """Attention within the windows of an image: [B, H, W, D] -> [B, H, W, D].

    Args:
        config: the model's.
        stage: whose block it is of.
    """

    def __init__(self, config: Config, stage: int):
        own, heads = config.fields, config.fields["num_heads"][stage]
        width, std, side = own["embed_dim"] * 2**stage, own["initializer_range"], own["window_size"]
        rate = own["attention_probs_dropout_prob"]
        super().__init__(width, heads, std, rate, bias=own["qkv_bias"])
        table = Leaf(((2 * side - 1) ** 2, heads), ("places", "heads"), std=std, decay=False)
        self.table = parameter(table)
        self.side = side

    def __call__(self, x: jax.Array, shift: jax.Array | int, keys: Keys) -> jax.Array:
        height, width = x.shape[1:3]
        if min(height, width) < self.side:
            raise UserError(
                f"A stage has {height} x {width} pixels, fewer than its windows of {self.side}.",
                "Set model.image_size to the checkpoint's own, or a larger one.",
            )
        shift = 0 if min(height, width) == self.side else shift
        x = jnp.pad(x, ((0, 0), (0, -height % self.side), (0, -width % self.side), (0, 0)))
        size = x.shape[1:3]
        windows = cut_windows(
            jnp.roll(x, jnp.array([-shift, -shift]), (1, 2)), self.side
        )  # [B W, N, D]
        apart = jnp.tile(strangers(size, self.side, shift), (len(x), 1, 1))[:, None]
        table = self.table[...].astype(jnp.float32)[relative_places(self.side)]  # [N, N, heads]
        mask = Mask(jnp.zeros(windows.shape[:2], jnp.int32), apart)
        positions = table.transpose(2, 0, 1)
        options = AttentionOptions(self.heads, self.weights_rate, keys.own, positions=positions)
        query, key, value = (one(windows, keys.block) for one in (self.query, self.key, self.value))
        out = self.output(attention(query, key, value, mask, options), keys.block)
        joined = join_windows(out, self.side, (size[0], size[1]))
        return jnp.roll(joined, jnp.array([shift, shift]), (1, 2))[:, :height, :width]


def cut_windows(x: jax.Array, side: int) -> jax.Array:
    """Cut images [B, H, W, D] into windows [B W, N, D], row by row."""
    rows, height, width, channels = x.shape
    x = x.reshape(rows, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, channels)


def join_windows(windows: jax.Array, side: int, size: tuple[int, int]) -> jax.Array:
    """Put windows [B W, N, D] together to images [B, *size, D]."""
    height, width = size
    grid = (height // side, width // side)
    x = windows.reshape(-1, *grid, side, side, windows.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def strangers(size: tuple[int, ...], side: int, shift: jax.Array | int) -> jax.Array:
    """Return what is added to scores of pixels that only a shift has brought into one window.

    Args:
        size: height and width of the image, multiples of `side`.
        side: of a window.
        shift: of the image.

    Returns:
        [W, N, N] float32.
    """
    down, across = (
        jnp.where(line >= length - side, 1, 0) + jnp.where(line >= length - shift, 1, 0)
        for line, length in ((jnp.arange(length), length) for length in size)
    )
    regions = (3 * down[:, None] + across)[None, :, :, None]
    own = cut_windows(regions, side)[..., 0]  # [W, N]
    return jnp.where(own[:, None] == own[:, :, None], 0.0, APART)


def relative_places(side: int) -> np.ndarray:
    """Return which row of a table is for each pair of a window's pixels: [N, N]."""
    line = np.arange(side)
    pixels = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    apart = pixels[:, None] - pixels + side - 1  # [N, N, 2]
    return apart[..., 0] * (2 * side - 1) + apart[..., 1]


class Block(nnx.Module):
    """Attention, then an MLP, each on a normalized input: [B, H, W, D] -> [B, H, W, D].

    Args:
        config: the model's.
        unit: which block it is.
    """

    def __init__(self, config: Config, unit: Unit):
        own = config.fields
        width, std, eps = (
            own["embed_dim"] * 2**unit.stage,
            own["initializer_range"],
            own["layer_norm_eps"],
        )
        self.merge = Merge(width // 2, std) if unit.shrinks else None
        self.attention_norm = LayerNorm(width, eps)
        self.attention = Attention(config, unit.stage)
        self.mlp_norm = LayerNorm(width, eps)
        inner = int(own["mlp_ratio"] * width)
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.activation, self.rate = own["hidden_act"], own["hidden_dropout_prob"]

    def __call__(
        self,
        x: jax.Array,
        context: None,
        key: jax.Array | None,
        cache: BlockCache,
        drop: jax.Array | float,
        shift: jax.Array | int,
    ) -> tuple[jax.Array, BlockCache]:
        weights, output, path, mlp = block_keys(key, 4)
        x = x if self.merge is None else self.merge(x, key)
        branch = self.attention(self.attention_norm(x), shift, weights)
        x += drop_path(dropout(branch, self.rate, output.own), drop, path.own)
        inner = ACTIVATIONS[self.activation](self.up(self.mlp_norm(x), key))
        # `transformers` leaves out whole branches of the attention alone.
        return x + dropout(self.down(inner, key), self.rate, mlp.own), cache


class Encoder(nnx.Module):
    """Top of a bare model: the normalized pixels of the last stage [B, N, D], and their mean."""

    def __init__(self, config: Config):
        width = config.fields["embed_dim"] * 2 ** (len(config.fields["depths"]) - 1)
        self.norm = LayerNorm(width, config.fields["layer_norm_eps"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = self.norm(x).reshape(len(x), -1, x.shape[-1])
        return {"last_hidden_state": x, "pooler_output": x.mean(1)}


class Classifier(nnx.Module):
    """Top of an image classifier: `logits` [B, C] of the mean of the last stage's pixels."""

    def __init__(self, config: Config, labels: int):
        own = config.fields
        width = own["embed_dim"] * 2 ** (len(own["depths"]) - 1)
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.head = Linear(width, labels, ("embed", "labels"), own["initializer_range"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        return {"logits": self.head(self.norm(x).mean((1, 2))).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model; the blocks of a stage but its first are one object."""
    units = list(units_of(config.fields["depths"]))
    kinds = {(unit.stage, unit.shrinks): unit for unit in units}
    parts = {kind: Part(Block(config, unit)) for kind, unit in kinds.items()}
    blocks = tuple(parts[unit.stage, unit.shrinks] for unit in units)
    top = Encoder(config) if head is None else Classifier(config, num_labels or 2)
    half = config.fields["window_size"] // 2
    numbers: dict[str, Sequence[float]] = {
        "drop": rising_rates(config.fields["drop_path_rate"], len(units)),
        "shift": [half * (unit.number % 2) for unit in units],
    }
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top), numbers=numbers)}


MERGE_NAMES = (*norm("norm", "norm"), *dense("reduction", "reduction"))
BLOCK_NAMES = (
    *norm("layernorm_before", "attention_norm"),
    *dense("attention.self.query", "attention/query"),
    *dense("attention.self.key", "attention/key"),
    *dense("attention.self.value", "attention/value"),
    Name("attention.self.relative_position_bias_table", "attention/table"),
    *dense("attention.output.dense", "attention/output"),
    *norm("layernorm_after", "mlp_norm"),
    *dense("intermediate.dense", "up"),
    *dense("output.dense", "down"),
)


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the table of names of a Swin without its head."""
    lines = [
        *dense("embeddings.patch_embeddings.projection", "patch"),
        *norm("embeddings.norm", "patch_norm"),
        *norm("layernorm", "norm"),
    ]
    for number, unit in enumerate(units_of(config.fields["depths"])):
        ours = f"blocks/{number}/"
        lines += within(BLOCK_NAMES, f"encoder.layers.{unit.stage}.blocks.{unit.number}.", ours)
        if unit.shrinks:
            hf = f"encoder.layers.{unit.stage - 1}.downsample."
            lines += within(MERGE_NAMES, hf, f"{ours}merge/")
    return tuple(lines)


IN_MEMORY = (
    ("attention.self.query", "attention.q_proj"),
    ("attention.self.key", "attention.k_proj"),
    ("attention.self.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("attention.self.relative", "attention.relative_position_bias.relative"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


@dataclass(frozen=True)
class SwinNames(BareNames):
    """Tensor names of a Swin, whose modules transformers 5 names otherwise than files do."""

    def in_memory(self, name: str, model_type: str) -> str:
        for stored, module in IN_MEMORY:
            name = name.replace(stored, module)
        return name


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the Swins with a config.json's stages."""
    del families, from_two
    config = Config.from_hf(fields, tuple(fields))
    tensors = SwinNames(
        {"swin": names_of(config)},
        {HEAD: dense("classifier", "head")},
        (
            r"classifier\..*",
            r"embeddings\.mask_token",
            r"decoder\..*",
            r".*relative_position_index",
        ),
        prefixes={"swin": "swin."},
    )
    return Family("swin", Config, MODEL_TYPES, tensors, towers, text=False, images=True)


FAMILY = ComposedFamily("swin", Config, MODEL_TYPES, compose)
