"""The transformer of Stable Diffusion 3: image and text attend together, each with its own weights.

A block's stream is a pair, the patches of the image and the states of the text. Version 3.5
normalizes queries and keys, and some of its blocks attend over the image once more.

Source: Esser et al. (2024), https://arxiv.org/abs/2403.03206. The computation follows `diffusers`'
`transformer_sd3.py`.
"""

from __future__ import annotations

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
    modulated,
    sinusoids,
    step_names,
    unpatched,
)
from jaxft.models.family import Family
from jaxft.models.layers.attention import AttentionOptions, Mask, attention, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import gelu_tanh
from jaxft.models.layers.modules import (
    Keys,
    LayerNorm,
    Linear,
    RMSNorm,
    block_keys,
    tokens,
)
from jaxft.models.layers.vision import PatchEmbedding, grid_of
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import check_choices, check_numbers
from jaxft.models.weights.hf_config import DIFFUSERS_FIELDS, HfConfig
from jaxft.models.weights.names import Name, dense
from jaxft.models.weights.tensor_names import TensorNames

MODEL_TYPE = "SD3Transformer2DModel"
HEAD = "diffusion"
FEATURES = 256  # of a step, before it is embedded
EPS = 1e-6
DEFAULTS: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": [],
    "qk_norm": None,
}
SIZES = tuple(n for n in DEFAULTS if n not in ("out_channels", "dual_attention_layers", "qk_norm"))


class Config(HfConfig):
    """Config of Stable Diffusion 3's transformer."""

    UNREAD: ClassVar[tuple[str, ...]] = DIFFUSERS_FIELDS

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, SIZES, ignore)
        check_numbers("out_channels", [own["out_channels"] or own["in_channels"]])
        if own["qk_norm"] is not None:
            check_choices("qk_norm", [own["qk_norm"]], ["rms_norm"])
        config = cls(MODEL_TYPE, own)
        if own["caption_projection_dim"] != config.width:
            raise UserError(
                f"config.json: caption_projection_dim must be the width of the stream, "
                f"{config.width}."
            )
        return config

    def with_dropout(self, rate: float) -> Self:
        del rate
        return self  # it has none

    @property
    def width(self) -> int:
        """Return D, the width of both streams."""
        return self.fields["num_attention_heads"] * self.fields["attention_head_dim"]

    @property
    def out_channels(self) -> int:
        """Return the channels of what is predicted."""
        return self.fields["out_channels"] or self.fields["in_channels"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Context of the blocks.

    Args:
        condition: the embedding of step and text, [B, D], after its activation.
        joint, image: what computes attention over both streams, and over the image; None where
            XLA does.
    """

    condition: jax.Array
    joint: Mask | None
    image: Mask | None


Stream = tuple[jax.Array, jax.Array]  # patches [B, T, D], states of the text [B, S, D]


class Condition(nnx.Module):
    """Embedding of the step and of the text's vector: [B, D]."""

    def __init__(self, config: Config):
        self.step = StepEmbedding(FEATURES, config.width)
        self.text = StepEmbedding(config.fields["pooled_projection_dim"], config.width)

    def __call__(self, batch: Batch, dtype: Any) -> jax.Array:
        features = sinusoids(batch["timestep"], FEATURES, flipped=True, shift=0.0)
        text = batch["pooled_projections"].astype(dtype)
        return jax.nn.silu(self.step(features.astype(dtype)) + self.text(text))


class Stem(nnx.Module):
    """Stem: patches of `sample` [B, C, H, W], and the text's `encoder_hidden_states` [B, S, D].

    A batch has the `timestep` [B] and the text's vector `pooled_projections` [B, P] too.
    """

    def __init__(self, config: Config):
        own, side = config.fields, config.fields["patch_size"]
        self.patch = PatchEmbedding(own["in_channels"], (side, side), config.width, STD)
        most = own["pos_embed_max_size"]
        self.position = tokens(most * most, config.width, 0.0)
        self.states = Linear(own["joint_attention_dim"], config.width, ("source", "embed"), STD)
        self.condition = Condition(config)
        heads = own["num_attention_heads"]
        self.needs = Needs(heads, heads, own["attention_head_dim"])
        self.most = most

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[Stream, Context]:
        sample = batch["sample"]
        rows, columns = grid = grid_of(sample.shape[2:], self.patch.patch)
        if max(grid) > self.most or sample.shape[2:] != tuple(
            n * self.patch.patch[0] for n in grid
        ):
            raise UserError(
                f"The images are {sample.shape[2]} x {sample.shape[3]}; the model takes multiples "
                f"of {self.patch.patch[0]} up to {self.most * self.patch.patch[0]}."
            )
        top, left = (self.most - rows) // 2, (self.most - columns) // 2
        # A fixed table: it is in the file, and does not train.
        whole = jax.lax.stop_gradient(self.position[...]).reshape(self.most, self.most, -1)
        position = whole[top : top + rows, left : left + columns].reshape(rows * columns, -1)
        x = self.patch(sample) + position
        states = self.states(batch["encoder_hidden_states"].astype(x.dtype))
        both = (len(x), x.shape[1] + states.shape[1])
        masks = (self._mask(shape, compute) for shape in (both, x.shape[:2]))
        return (x, states), Context(self.condition(batch, x.dtype), *masks)

    def _mask(self, shape: tuple[int, ...], compute: Compute) -> Mask | None:
        kernel = compute.kernel(self.needs, shape)
        segments = jnp.zeros(shape, jnp.int32)
        return None if kernel is None else make_mask(segments, kernel=kernel)


class Maps(nnx.Module):
    """Query, key and value maps of one stream, with norms of each head's queries and keys.

    Args:
        config: the model's.
        output: whether there is a map of what attention mixes.
    """

    def __init__(self, config: Config, output: bool = True):
        own, width = config.fields, config.width

        def linear(axes: tuple[str, str]) -> Linear:
            return Linear(width, width, axes, STD)

        self.query, self.key, self.value = (linear(("embed", "heads")) for _ in range(3))
        self.output = linear(("heads", "embed")) if output else None
        normed = own["qk_norm"] is not None
        head = own["attention_head_dim"]
        self.query_norm = RMSNorm(head, EPS, "head") if normed else None
        self.key_norm = RMSNorm(head, EPS, "head") if normed else None
        self.heads = own["num_attention_heads"]

    def __call__(self, x: jax.Array, keys: Keys) -> tuple[jax.Array, jax.Array, jax.Array]:
        query, key = self.query(x, keys.block), self.key(x, keys.block)
        query, key = self._normal(self.query_norm, query), self._normal(self.key_norm, key)
        return query, key, self.value(x, keys.block)

    def _normal(self, norm: RMSNorm | None, x: jax.Array) -> jax.Array:
        if norm is None:
            return x
        return norm(x.reshape(*x.shape[:2], self.heads, -1)).reshape(x.shape)


class Mlp(nnx.Module):
    """A map up, an activation and a map down."""

    def __init__(self, width: int):
        self.up = Linear(width, 4 * width, ("embed", "mlp"), STD)
        self.down = Linear(4 * width, width, ("mlp", "embed"), STD)

    def __call__(self, x: jax.Array, keys: Keys) -> jax.Array:
        return self.down(gelu_tanh(self.up(x, keys.block)), keys.block)


class Block(nnx.Module):
    """Joint attention, and an MLP for each stream.

    Args:
        config: the model's.
        last: whether the text's stream ends here.
        dual: whether the image attends to itself alone too.
    """

    def __init__(self, config: Config, last: bool, dual: bool):
        width = config.width
        axes = ("embed", "mlp")
        self.modulation = Linear(width, (9 if dual else 6) * width, axes, STD)
        self.text_modulation = Linear(width, (2 if last else 6) * width, axes, STD)
        self.attention = Maps(config)
        self.text_attention = Maps(config, output=not last)
        self.image_attention = Maps(config) if dual else None
        self.mlp = Mlp(width)
        self.text_mlp = None if last else Mlp(width)
        self.norm = LayerNorm(width, EPS, affine=False)
        self.heads = config.fields["num_attention_heads"]

    def __call__(
        self, stream: Stream, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[Stream, BlockCache]:
        (x, states), (keys,) = stream, block_keys(key, 1)
        own = jnp.split(self.modulation(context.condition), 9 if self.image_attention else 6, -1)
        count = 2 if self.text_mlp is None else 6
        text = jnp.split(self.text_modulation(context.condition), count, -1)
        # The last block's scale comes before its shift.
        shift, scale = text[:2] if self.text_mlp is not None else text[::-1]
        parts = (
            self.attention(modulated(self.norm(x), own[0], own[1]), keys),
            self.text_attention(modulated(self.norm(states), shift, scale), keys),
        )
        query, keys_of_both, value = (jnp.concatenate(pair, 1) for pair in zip(*parts, strict=True))
        mixed = attention(query, keys_of_both, value, context.joint, AttentionOptions(self.heads))
        read, read_text = mixed[:, : x.shape[1]], mixed[:, x.shape[1] :]
        second = self._second(x, own, context, keys)
        assert self.attention.output is not None  # the image's stream goes on
        x += own[2][:, None] * self.attention.output(read, keys.block) + second
        x += own[5][:, None] * self.mlp(modulated(self.norm(x), own[3], own[4]), keys)
        if self.text_mlp is None or self.text_attention.output is None:
            return (x, states), cache
        states += text[2][:, None] * self.text_attention.output(read_text, keys.block)
        inner = modulated(self.norm(states), text[3], text[4])
        return (x, states + text[5][:, None] * self.text_mlp(inner, keys)), cache

    def _second(
        self, x: jax.Array, own: Sequence[jax.Array], context: Context, keys: Keys
    ) -> jax.Array | float:
        """Return what the image's attention to itself alone adds; 0 in a block without it."""
        maps = self.image_attention
        if maps is None or maps.output is None:
            return 0.0
        parts = maps(modulated(self.norm(x), own[6], own[7]), keys)
        mixed = attention(*parts, context.image, AttentionOptions(self.heads))
        return own[8][:, None] * maps.output(mixed, keys.block)


class Top(nnx.Module):
    """Top: the prediction `sample` [B, C, H, W] float32, modulated by the stem's condition."""

    def __init__(self, config: Config):
        self.again = Condition(config)  # that of the stem
        self.modulation = Linear(config.width, 2 * config.width, ("embed", "mlp"), STD)
        self.norm = LayerNorm(config.width, EPS, affine=False)
        self.side, self.channels = config.fields["patch_size"], config.out_channels
        self.output = Linear(config.width, self.side**2 * self.channels, ("embed", "pixels"), STD)

    def __call__(self, stream: Stream, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = stream[0]
        scale, shift = jnp.split(self.modulation(self.again(batch, x.dtype)), 2, -1)
        patches = self.output(modulated(self.norm(x), shift, scale))
        grid = grid_of(batch["sample"].shape[2:], (self.side, self.side))
        return {"sample": unpatched(patches, grid, self.side)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the one tower; blocks that are alike are one object."""
    del head, num_labels
    count = config.fields["num_layers"]
    kinds = [(i == count - 1, i in config.fields["dual_attention_layers"]) for i in range(count)]
    made = {kind: Part(Block(config, *kind)) for kind in dict.fromkeys(kinds)}
    top = Part(Top(config))
    again = [name for name in top.leaves if name.startswith("again/")]
    ties = {name: name.replace("again/", "condition/") for name in again}
    blocks = tuple(made[kind] for kind in kinds)
    return {"denoiser": Tower(Part(Stem(config)), blocks, top, ties=ties, uncached=True)}


IN = "transformer_blocks.{i}."
MAPS = (
    ("attn", "attention", ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
    (
        "attn",
        "text_attention",
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k"),
    ),
    ("attn2", "image_attention", ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
)
OURS = ("query", "key", "value", "output", "query_norm", "key_norm")


def _attention_names() -> list[Name]:
    """Return the lines of the three attentions of a block."""
    lines: list[Name] = []
    for module, ours, stored in MAPS:
        for hf, own in zip(stored, OURS, strict=True):
            pair = f"{IN}{module}.{hf}", f"blocks/{{i}}/{ours}/{own}"
            scale = Name(f"{pair[0]}.weight", f"{pair[1]}/scale")
            lines += [scale] if own.endswith("norm") else dense(*pair)
    return lines


NAMES = (
    *dense("pos_embed.proj", "patch"),
    Name("pos_embed.pos_embed", "position"),
    *dense("context_embedder", "states"),
    *step_names("time_text_embed.timestep_embedder", "condition/step"),
    *step_names("time_text_embed.text_embedder", "condition/text"),
    *dense(f"{IN}norm1.linear", "blocks/{i}/modulation"),
    *dense(f"{IN}norm1_context.linear", "blocks/{i}/text_modulation"),
    *_attention_names(),
    *dense(f"{IN}ff.net.0.proj", "blocks/{i}/mlp/up"),
    *dense(f"{IN}ff.net.2", "blocks/{i}/mlp/down"),
    *dense(f"{IN}ff_context.net.0.proj", "blocks/{i}/text_mlp/up"),
    *dense(f"{IN}ff_context.net.2", "blocks/{i}/text_mlp/down"),
    *dense("norm_out.linear", "modulation"),
    *dense("proj_out", "output"),
)
TENSORS = TensorNames({MODEL_TYPE: NAMES}, {}, (), fresh=())
FAMILY = Family(
    "sd3", Config, {MODEL_TYPE: {HEAD: MODEL_TYPE}}, TENSORS, towers, text=False, head=("output/",)
)
