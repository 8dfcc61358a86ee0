"""BEiT: a ViT with learned scores of the distance between patches, which most have no positions.

Each block has a table of the scores or all share one; branches are scaled and, in training, dropped
as a whole, deeper ones more often. Classes are of the mean of the patches.

Source: Bao et al. (2021), https://arxiv.org/abs/2106.08254; the computation follows
`transformers`' `modeling_beit.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.vit.parts import (
    Block,
    Join,
    check_image_size,
    resize_positions,
)
from jaxft.models.families.vit.vit import HEAD, IN_MEMORY
from jaxft.models.family import Family, architectures
from jaxft.models.layers.attention import AttentionOptions, attention
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import ACTIVATIONS, dropout
from jaxft.models.layers.modules import Keys, LayerNorm, Leaf, Linear, parameter, tokens
from jaxft.models.layers.vision import (
    PatchEmbedding,
    Size,
    linear_matrix,
    rising_rates,
)
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import check_activation, check_divides
from jaxft.models.weights.hf_config import ImageConfig
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import BareNames

MODEL_TYPES = {"beit": architectures("Beit", HEAD)}
# The fields, with what a config.json without the field means.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "use_mask_token": False,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "layer_scale_init_value": 0.1,
    "drop_path_rate": 0.1,
    "use_mean_pooling": True,
}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
TABLE = "relative_position_bias.relative_position_bias_table"
LAYER, BLOCK = "encoder.layer.{i}", "blocks/{i}"
NAMES = (
    Name("embeddings.cls_token", "embeddings/class_token"),
    Name("embeddings.mask_token", "embeddings/mask_token"),
    Name("embeddings.position_embeddings", "embeddings/position"),
    *dense("embeddings.patch_embeddings.projection", "embeddings/patch"),
    Name(f"encoder.{TABLE}", "distances/table"),
    *norm(f"{LAYER}.layernorm_before", f"{BLOCK}/attention/norm"),
    *dense(f"{LAYER}.attention.attention.query", f"{BLOCK}/attention/query"),
    *dense(f"{LAYER}.attention.attention.key", f"{BLOCK}/attention/key"),
    *dense(f"{LAYER}.attention.attention.value", f"{BLOCK}/attention/value"),
    Name(f"{LAYER}.attention.attention.{TABLE}", f"{BLOCK}/attention/distances/table"),
    *dense(f"{LAYER}.attention.output.dense", f"{BLOCK}/attention/output"),
    Name(f"{LAYER}.lambda_1", f"{BLOCK}/attention/join/layer_scale"),
    *norm(f"{LAYER}.layernorm_after", f"{BLOCK}/mlp/norm"),
    *dense(f"{LAYER}.intermediate.dense", f"{BLOCK}/mlp/up"),
    *dense(f"{LAYER}.output.dense", f"{BLOCK}/mlp/down"),
    Name(f"{LAYER}.lambda_2", f"{BLOCK}/mlp/join/layer_scale"),
    *norm("layernorm", "norm"),
    *norm("pooler.layernorm", "pooler/norm"),
)
UNUSED = (
    r".*\.relative_position_index",  # computed, as a buffer of old files
    r"embeddings\.mask_token",
    r"(pooler\.)?layernorm\..*",
    r"(classifier|lm_head)\..*",
    r"(decode_head|auxiliary_head|fpn\d)\..*",  # of segmentation
)
MOVED = (
    (f"encoder.{TABLE}", f"shared_position_bias.{TABLE.split('.')[1]}"),
    (f"attention.attention.{TABLE}", TABLE),
)


class BeitNames(BareNames):
    """Tensor names of a BEiT, whose modules transformers 5 names otherwise."""

    def in_memory(self, name: str, model_type: str) -> str:
        for stored, module in (*MOVED, *IN_MEMORY):
            name = name.replace(stored, module)
        return name


TENSORS = BeitNames(
    {"beit": NAMES},
    {HEAD: dense("classifier", "head")},
    UNUSED,
    fresh=("pooler/", "head/", "embeddings/mask_token"),
    prefixes={"beit": "beit."},
)


class Config(ImageConfig):
    """Config of a BEiT."""

    FIXED: ClassVar[Mapping[str, Any]] = {"is_encoder_decoder": False}
    # Of masked image modeling, of segmentation and of backbones.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "pool_scales", "use_auxiliary_head", "auxiliary_loss_weight"),
        *("auxiliary_channels", "auxiliary_num_convs", "auxiliary_concat_input"),
        *("semantic_loss_ignore_index", "add_fpn", "reshape_hidden_states", "stage_names"),
        *("out_features", "out_indices", "_out_features", "_out_indices", "segmentation_indices"),
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, SIZES, ignore)
        check_divides("hidden_size", own["hidden_size"], own["num_attention_heads"], "heads")
        check_activation("hidden_act", own["hidden_act"], ACTIVATIONS)
        config = cls("beit", own)
        if min(config.grid) < 1:
            raise UserError("config.json: image_size is smaller than patch_size.")
        return config

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(("hidden_dropout_prob", "attention_probs_dropout_prob"), rate)

    def with_image_size(self, size: int) -> Self:
        return self.from_hf({**self.to_hf(), "image_size": size})

    @property
    def distances(self) -> int:
        """Return the number of rows of a table: distances of patches, and the class token's 3."""
        return math.prod(_spans(self.grid)) + 3


def _spans(grid: Size) -> Size:
    """Return how many distances there are down and across a grid of patches."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def refits(
    config: Config, fields: Mapping[str, Any]
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the functions that fit positions and tables to images of another size.

    They are `transformers`' own for such images: bicubic and bilinear.
    """
    own = Config.from_hf(fields, tuple(fields))

    def positions(stored: np.ndarray) -> np.ndarray:  # [1, N, D]
        return resize_positions(stored, 1, own.grid, config.grid)

    def table(stored: np.ndarray) -> np.ndarray:  # [R, H]
        old, new = _spans(own.grid), _spans(config.grid)
        grid = stored[:-3].reshape(*old, -1)
        down, across = (linear_matrix(old[axis], new[axis]) for axis in (0, 1))
        grid = np.einsum("yh,xw,hwk->yxk", down, across, grid)
        return np.concatenate([grid.reshape(-1, stored.shape[-1]), stored[-3:]], axis=0)

    blocks = range(config.fields["num_hidden_layers"])
    tables = [f"blocks/{i}/attention/distances/table" for i in blocks]
    return {"embeddings/position": positions, **dict.fromkeys((*tables, "distances/table"), table)}


class Embeddings(nnx.Module):
    """The class token and the patches, with positions where there are any: [B, N, D]."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]

        self.patch = PatchEmbedding(own["num_channels"], config.patch, width, std)
        self.class_token = tokens(1, width, std)
        # It stood for hidden patches in pretraining: nothing reads it, and it is handed back.
        self.mask_token = tokens(1, width, std) if own["use_mask_token"] else None
        absolute = own["use_absolute_position_embeddings"]
        self.position = tokens(1 + math.prod(config.grid), width, std) if absolute else None
        self.rate = own["hidden_dropout_prob"]

    def __call__(self, pixels: jax.Array, key: jax.Array | None) -> jax.Array:
        token = self.class_token[...]
        first = jnp.broadcast_to(token, (len(pixels), *token.shape[1:]))
        x = jnp.concatenate([first, self.patch(pixels)], axis=1)
        x = x if self.position is None else x + self.position[...]
        return dropout(x, self.rate, key)


class Distances(nnx.Module):
    """Learned scores of the distances between an image's tokens: [H, N, N] float32."""

    def __init__(self, config: Config):
        own = config.fields
        shape = config.distances, own["num_attention_heads"]
        axes, std = ("places", "heads"), own["initializer_range"]
        self.table = parameter(Leaf(shape, axes, std=std, decay=False))
        self.grid = config.grid

    def __call__(self) -> jax.Array:
        rows = self.table[...].astype(jnp.float32)[token_distances(self.grid)]  # [N, N, H]
        return rows.transpose(2, 0, 1)


def token_distances(grid: Size) -> np.ndarray:
    """Return which row of a table is for each pair of tokens, the class token first: [N, N]."""
    lines = [np.arange(side) for side in grid]
    patches = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    apart = patches[:, None] - patches + np.array(grid) - 1  # [N - 1, N - 1, 2]
    down, across = _spans(grid)
    rows = np.empty((len(patches) + 1,) * 2, np.int32)
    rows[1:, 1:] = apart[..., 0] * across + apart[..., 1]
    # From the class token, to it, and from it to itself.
    rows[0], rows[:, 0], rows[0, 0] = (down * across + number for number in range(3))
    return rows


class Stem(nnx.Module):
    """Stem: the embeddings, and the scores of distances that all blocks share."""

    def __init__(self, config: Config):
        self.embeddings = Embeddings(config)
        shared = config.fields["use_shared_relative_position_bias"]
        self.distances = Distances(config) if shared else None
        self.image_size = config.image_size
        own, heads = config.fields, config.fields["num_attention_heads"]
        width, rate = own["hidden_size"] // heads, own["attention_probs_dropout_prob"]
        self.needs = Needs(heads, heads, width, rate, positions=True)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, jax.Array | None]:
        pixels = batch["pixel_values"]
        check_image_size(pixels.shape[2:], self.image_size)
        x = self.embeddings(pixels, key)
        compute.kernel(self.needs, x.shape[:2])  # none serves: one that is asked for is refused
        return x, None if self.distances is None else self.distances()


def join_of(config: Config) -> Join:
    """Build what adds a branch to the stream."""
    own = config.fields
    return Join(own["hidden_size"], own["layer_scale_init_value"], own["hidden_dropout_prob"])


class Attention(nnx.Module):
    """Self-attention over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, std = own["hidden_size"], own["initializer_range"]
        inward = ("embed", "heads")
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.query = Linear(width, width, inward, std)
        self.key = Linear(width, width, inward, std, bias=False)
        self.value = Linear(width, width, inward, std)
        self.output = Linear(width, width, ("heads", "embed"), std)
        self.distances = Distances(config) if own["use_relative_position_bias"] else None
        self.join = join_of(config)
        self.heads, self.rate = own["num_attention_heads"], own["attention_probs_dropout_prob"]

    def __call__(
        self, x: jax.Array, shared: jax.Array | None, drop: jax.Array | float, keys: Keys
    ) -> jax.Array:
        weights_keys, join_keys = keys.split(2)
        scores = shared
        if self.distances is not None:
            scores = self.distances() if shared is None else shared + self.distances()
        options = AttentionOptions(self.heads, self.rate, weights_keys.own, positions=scores)
        normal = self.norm(x)
        query, key, value = (
            one(normal, keys.block) for one in (self.query, self.key, self.value)
        )  # [B, N, H K] each
        mixed = attention(query, key, value, None, options)
        return self.join(x, self.output(mixed, keys.block), drop, join_keys)


class Mlp(nnx.Module):
    """A map up, an activation and a map down over the normalized input, joined to the input."""

    def __init__(self, config: Config):
        own = config.fields
        width, inner, std = own["hidden_size"], own["intermediate_size"], own["initializer_range"]
        self.norm = LayerNorm(width, own["layer_norm_eps"])
        self.up = Linear(width, inner, ("embed", "mlp"), std)
        self.down = Linear(inner, width, ("mlp", "embed"), std)
        self.join = join_of(config)
        self.activation = own["hidden_act"]

    def __call__(self, x: jax.Array, drop: jax.Array | float, keys: Keys) -> jax.Array:
        inner = ACTIVATIONS[self.activation](self.up(self.norm(x), keys.block))  # [B, N, F]
        return self.join(x, self.down(inner, keys.block), drop, keys)


class Pooler(nnx.Module):
    """Norm of the mean of the patches: [B, N, D] -> [B, D]."""

    def __init__(self, config: Config):
        self.norm = LayerNorm(config.fields["hidden_size"], config.fields["layer_norm_eps"])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x[:, 1:].mean(1))


class Encoder(nnx.Module):
    """Top of a bare model: the stream, and the pooled patches or the class token.

    The stream is normalized where nothing is pooled.
    """

    def __init__(self, config: Config):
        own = config.fields
        pooled = own["use_mean_pooling"]
        self.norm = None if pooled else LayerNorm(own["hidden_size"], own["layer_norm_eps"])
        self.pooler = Pooler(config) if pooled else None

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = x if self.norm is None else self.norm(x)
        return {"last_hidden_state": x, "pooler_output": self.pooled(x)}

    def pooled(self, x: jax.Array) -> jax.Array:
        """Return what is classified, of a finished stream: [B, N, D] -> [B, D]."""
        return x[:, 0] if self.pooler is None else self.pooler(x)


class Classifier(Encoder):
    """Top of an image classifier: `logits` [B, C]."""

    def __init__(self, config: Config, num_labels: int):
        super().__init__(config)
        own = config.fields
        axes = ("embed", "labels")
        self.head = Linear(own["hidden_size"], num_labels, axes, own["initializer_range"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pooled = super().__call__(x, batch, key)["pooler_output"]
        return {"logits": self.head(pooled).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the tower of a model under a head."""
    count = config.fields["num_hidden_layers"]
    top = Classifier(config, num_labels or 2) if head else Encoder(config)
    numbers = {"drop": rising_rates(config.fields["drop_path_rate"], count)}
    blocks = (Part(Block(Attention(config), Mlp(config))),) * count
    return {"vision": Tower(Part(Stem(config)), blocks, Part(top), numbers=numbers)}


FAMILY = Family(
    *("beit", Config, MODEL_TYPES, TENSORS, towers), text=False, images=True, refits=refits
)
