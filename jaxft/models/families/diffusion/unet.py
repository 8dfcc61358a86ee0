"""The U-Net of Stable Diffusion: residual blocks and transformers, down to few pixels and up again.

A block of the tower is a residual block with the transformer behind it, so that the depth of a
parameter is how far down and up the U it lies. The stream is the image and those that the way up
reads beside it.

Source: Ronneberger et al. (2015), https://arxiv.org/abs/1505.04597; Rombach et al. (2022),
https://arxiv.org/abs/2112.10752; SDXL: Podell et al. (2023), https://arxiv.org/abs/2307.01952. The
computation follows `diffusers`' `unet_2d_condition.py` and `unet_2d_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.diffusion.modules import (
    RESIDUAL_NAMES,
    STD,
    GroupNorm,
    Residual,
    StepEmbedding,
    check_groups,
    doubled,
    sinusoids,
    step_names,
)
from jaxft.models.family import ComposedFamily, Family
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps, Source
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.math import gelu
from jaxft.models.layers.modules import Embedding, Keys, LayerNorm, Linear, block_keys
from jaxft.models.layers.vision import Convolution, channels_first, channels_last
from jaxft.models.tower.tower import Compute, Part, Tower
from jaxft.models.weights.config_fields import check_choices, check_lists, check_numbers
from jaxft.models.weights.hf_config import DIFFUSERS_FIELDS, HfConfig
from jaxft.models.weights.names import Name, dense, embedding, norm
from jaxft.models.weights.tensor_names import TensorNames, within

MODEL_TYPE = "UNet2DConditionModel"
HEAD = "diffusion"
MODEL_TYPES: dict[str, dict[str | None, str]] = {MODEL_TYPE: {HEAD: MODEL_TYPE}}
# Kind of block -> whether it has transformers.
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
MIDDLE = "UNetMidBlock2DCrossAttn"
SIZE_AND_TEXT = "text_time"  # what SDXL adds to the step's embedding
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": None,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": None,
    "transformer_layers_per_block": None,
    "attention_head_dim": None,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "projection_class_embeddings_input_dim": None,
}
SIZES = ("in_channels", "out_channels", "norm_num_groups")
# Fields that are one number, or one a level; and that number without the field.
EACH = {
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,  # the number of heads, whatever its name says
}


class Config(HfConfig):
    """Config of a U-Net."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "mid_block_type": MIDDLE,
        "resnet_out_scale_factor": 1.0,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
    }
    # Attention in float32, which is a matter of the type here, and what another field turns on.
    UNREAD: ClassVar[tuple[str, ...]] = (
        *DIFFUSERS_FIELDS,
        "upcast_attention",
        "addition_embed_type_num_heads",
    )

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, SIZES, ignore)
        check_lists(own, ("down_block_types", "up_block_types"), "block_out_channels")
        check_groups(own["block_out_channels"], own["norm_num_groups"])
        for name, known in (("down_block_types", DOWN), ("up_block_types", UP)):
            check_choices(name, own[name], known)
        for name, default in EACH.items():
            own[name] = default if own[name] is None else own[name]
            each = own[name] if isinstance(own[name], list) else [own[name]]
            check_numbers(name, each)
            if isinstance(own[name], list):
                check_lists(own, (name,), "block_out_channels")
        if own["addition_embed_type"] is not None:
            check_choices("addition_embed_type", [own["addition_embed_type"]], [SIZE_AND_TEXT])
            check_numbers("addition_time_embed_dim", [own["addition_time_embed_dim"]])
        return cls(MODEL_TYPE, own)

    def with_dropout(self, rate: float) -> Self:
        return self.with_fields(["dropout"], rate)

    def each(self, name: str) -> list[int]:
        """Return a field's value for each level, top to bottom."""
        value = self.fields[name]
        return value if isinstance(value, list) else [value] * len(self.widths)

    @property
    def widths(self) -> list[int]:
        """Return the channels of each level, top to bottom."""
        return self.fields["block_out_channels"]

    @property
    def step_width(self) -> int:
        """Return E, the width of the step's embedding."""
        return 4 * self.widths[0]


@dataclass(frozen=True)
class Unit:
    """Block of the tower: a residual block of the U and what follows it.

    Args:
        prefix: the beginning of its names in a file.
        index: of the residual block there.
        level: 0 for the largest image.
        inside, outside: channels.
        skip: channels that it reads beside the stream; 0 for none.
        layers: of its transformer; 0 for none.
        resized: `down`, `up` or None: what follows.
    """

    prefix: str
    index: int
    level: int
    inside: int
    outside: int
    skip: int = 0
    layers: int = 0
    resized: str | None = None

    @property
    def is_middle(self) -> bool:
        """Return whether it is the bottom of the U, which has a second residual block."""
        return self.prefix.startswith("mid_")


def units_of(config: Config) -> list[Unit]:
    """List the blocks of a U-Net in the order in which they run."""
    down = list(_down(config))
    widths = [config.widths[0]]
    for unit in down:
        widths += [unit.outside] * (2 if unit.resized else 1)
    last = len(config.widths) - 1
    layers = config.each("transformer_layers_per_block")[last]
    middle = Unit("mid_block.", 0, last, widths[-1], widths[-1], layers=layers)
    return [*down, middle, *_up(config, widths)]


def _down(config: Config) -> Iterator[Unit]:
    inside = config.widths[0]
    for level, width in enumerate(config.widths):
        attends = DOWN[config.fields["down_block_types"][level]]
        layers = config.each("transformer_layers_per_block")[level] if attends else 0
        count = config.each("layers_per_block")[level]
        for index in range(count):
            last = index == count - 1 and level < len(config.widths) - 1
            prefix, resized = f"down_blocks.{level}.", "down" if last else None
            yield Unit(prefix, index, level, inside, width, 0, layers, resized)
            inside = width


def _up(config: Config, skips: list[int]) -> Iterator[Unit]:
    inside = config.widths[-1]
    for number, level in enumerate(reversed(range(len(config.widths)))):
        attends = UP[config.fields["up_block_types"][number]]
        layers = config.each("transformer_layers_per_block")[level] if attends else 0
        count, width = config.each("layers_per_block")[level] + 1, config.widths[level]
        for index in range(count):
            prefix, resized = f"up_blocks.{number}.", "up" if level and index == count - 1 else None
            yield Unit(prefix, index, level, inside, width, skips.pop(), layers, resized)
            inside = width


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Context of the blocks.

    Args:
        step: the embedding of the step, [B, E].
        source: the states of the text.
        masks: what computes attention at each level; None where XLA does.
    """

    step: jax.Array
    source: Source
    masks: tuple[Mask | None, ...]


Stream = tuple[jax.Array, tuple[jax.Array, ...]]  # the image, and those read on the way up


class Stem(nnx.Module):
    """Stem: a convolution of `sample` [B, C, H, W], and the embedding of the `timestep` [B].

    Beside them a batch has `encoder_hidden_states` [B, S, D], the states of the text, and where the
    config asks for them `class_labels` [B], or `text_embeds` [B, D] and `time_ids` [B, 6].
    """

    def __init__(self, config: Config):
        own = config.fields
        self.input = Convolution(own["in_channels"], config.widths[0])
        self.step = StepEmbedding(config.widths[0], config.step_width)
        classes = own["num_class_embeds"]
        self.classes = Embedding(classes, config.step_width, "labels", STD) if classes else None
        added = own["projection_class_embeddings_input_dim"]
        adds = own["addition_embed_type"] == SIZE_AND_TEXT
        self.added = StepEmbedding(added, config.step_width) if adds else None
        self.config = config
        heads = config.each("attention_head_dim")
        pairs = zip(heads, config.widths, strict=True)
        self.needs = tuple(Needs(count, count, width // count) for count, width in pairs)

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[Stream, Context]:
        own, x = (
            self.config.fields,
            channels_last(batch["sample"], self.config.fields["in_channels"]),
        )
        height, width = x.shape[1:3]
        factor = 2 ** (len(self.config.widths) - 1)
        if height % factor or width % factor:
            raise UserError(
                f"The images are {height} x {width}; the model takes multiples of {factor}."
            )
        x = self.input(x.astype(compute.dtype))
        waves = (own["flip_sin_to_cos"], own["freq_shift"])
        step = self.step(
            sinusoids(batch["timestep"], self.config.widths[0], *waves).astype(x.dtype)
        )
        if self.classes is not None:
            step += self.classes(batch["class_labels"])
        if self.added is not None:
            ids = batch["time_ids"].reshape(-1)
            sizes = sinusoids(ids, own["addition_time_embed_dim"], *waves).reshape(len(x), -1)
            both = jnp.concatenate([batch["text_embeds"].astype(jnp.float32), sizes], -1)
            step += self.added(both.astype(x.dtype))
        states = batch["encoder_hidden_states"].astype(x.dtype)
        source = Source(states, Mask(jnp.zeros(states.shape[:2], jnp.int32), None))
        return (x, (x,)), Context(step, source, self._masks(x.shape, compute))

    def _masks(self, shape: tuple[int, ...], compute: Compute) -> tuple[Mask | None, ...]:
        masks = []
        for level, needs in enumerate(self.needs):
            rows = (shape[0], (shape[1] >> level) * (shape[2] >> level))
            kernel = compute.kernel(needs, rows)
            segments = jnp.zeros(rows, jnp.int32)
            masks.append(None if kernel is None else make_mask(segments, kernel=kernel))
        return tuple(masks)


class TransformerBlock(nnx.Module):
    """Attention over the image, over the text, and an MLP, each on a normalized input.

    Args:
        width: D.
        heads: of both attentions.
        source_width: of the text's states.
    """

    def __init__(self, width: int, heads: int, source_width: int):
        self.norm1 = LayerNorm(width, 1e-5)
        self.attention = AttentionMaps(width, heads, STD, 0.0, bias=False)
        self.norm2 = LayerNorm(width, 1e-5)
        self.source_attention = AttentionMaps(
            width, heads, STD, 0.0, bias=False, source_width=source_width
        )
        self.norm3 = LayerNorm(width, 1e-5)
        self.up = Linear(width, 8 * width, ("embed", "mlp"), STD)
        self.down = Linear(4 * width, width, ("mlp", "embed"), STD)

    def __call__(self, x: jax.Array, mask: Mask | None, source: Source, keys: Keys) -> jax.Array:
        x += self.attention.attend(self.norm1(x), mask, keys)[0]
        x += self.source_attention.attend(self.norm2(x), source, keys)[0]
        inner, gate = jnp.split(self.up(self.norm3(x), keys.block), 2, axis=-1)
        return x + self.down(inner * gelu(gate), keys.block)


class Transformer(nnx.Module):
    """Transformer over the pixels of an image, added to it: [B, H, W, C] -> [B, H, W, C].

    Args:
        config: the U-Net's.
        unit: the block that it is in.
    """

    def __init__(self, config: Config, unit: Unit):
        width, level = unit.outside, unit.level
        self.norm = GroupNorm(width, config.fields["norm_num_groups"], 1e-6)
        self.linear = config.fields["use_linear_projection"]

        def projection() -> Linear | Convolution:
            linear = self.linear
            return (
                Linear(width, width, ("embed", "mlp"), STD)
                if linear
                else Convolution(width, width, 1)
            )

        self.input = projection()
        heads = config.each("attention_head_dim")[level]
        source = config.each("cross_attention_dim")[level]
        for number in range(unit.layers):
            setattr(self, str(number), TransformerBlock(width, heads, source))
        self.output = projection()
        self.layers = unit.layers

    def __call__(self, x: jax.Array, mask: Mask | None, source: Source, keys: Keys) -> jax.Array:
        pixels = self.input(self.norm(x)).reshape(len(x), -1, x.shape[-1])
        for number, own in enumerate(keys.split(self.layers)):
            pixels = getattr(self, str(number))(pixels, mask, source, own)
        return x + self.output(pixels.reshape(x.shape))


class Block(nnx.Module):
    """Residual block, the transformer behind it, and a smaller or larger image.

    Args:
        config: the U-Net's.
        unit: which block it is.
    """

    def __init__(self, config: Config, unit: Unit):
        own = config.fields
        norms = (own["norm_num_groups"], own["norm_eps"], own["dropout"])
        inside, width = unit.inside + unit.skip, unit.outside
        self.residual = Residual(inside, width, config.step_width, *norms)
        self.transformer = Transformer(config, unit) if unit.layers else None
        middle = unit.is_middle
        self.second = Residual(width, width, config.step_width, *norms) if middle else None
        stride = 2 if unit.resized == "down" else 1
        self.resize = Convolution(width, width, 3, stride) if unit.resized else None
        self.unit = unit

    def __call__(
        self, stream: Stream, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[Stream, BlockCache]:
        (x, skips), keys = stream, block_keys(key, 3)
        if self.unit.skip:
            x, skips = jnp.concatenate([x, skips[-1]], -1), skips[:-1]
        x = self.residual(x, context.step, keys[0].own)
        if self.transformer is not None:
            x = self.transformer(x, context.masks[self.unit.level], context.source, keys[1])
        if self.second is not None:
            x = self.second(x, context.step, keys[2].own)
        down = self.unit.prefix.startswith("down_")
        skips = (*skips, x) if down else skips
        if self.resize is not None:
            x = self.resize(doubled(x) if self.unit.resized == "up" else x)
            skips = (*skips, x) if down else skips
        return (x, skips), cache


class Top(nnx.Module):
    """Top: the prediction `sample` [B, C, H, W] float32."""

    def __init__(self, config: Config):
        own, width = config.fields, config.widths[0]
        self.norm = GroupNorm(width, own["norm_num_groups"], own["norm_eps"])
        self.output = Convolution(width, own["out_channels"])

    def __call__(self, stream: Stream, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = self.output(jax.nn.silu(self.norm(stream[0])))
        return {"sample": channels_first(x).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build the one tower."""
    del head, num_labels
    blocks = tuple(Part(Block(config, unit)) for unit in units_of(config))
    return {"denoiser": Tower(Part(Stem(config)), blocks, Part(Top(config)), uncached=True)}


ENDS = (
    *dense("conv_in", "input"),
    *step_names("time_embedding", "step"),
    *embedding("class_embedding", "classes"),
    *step_names("add_embedding", "added"),
    *norm("conv_norm_out", "norm"),
    *dense("conv_out", "output"),
)
ATTENTIONS = (("attn1", "attention"), ("attn2", "source_attention"))
MAPS = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "output"))
LAYER_NAMES = (
    *(
        line
        for hf, ours in ATTENTIONS
        for stored, own in MAPS
        for line in dense(f"{hf}.{stored}", f"{ours}/{own}")
    ),
    *(line for number in (1, 2, 3) for line in norm(f"norm{number}", f"norm{number}")),
    *dense("ff.net.0.proj", "up"),
    *dense("ff.net.2", "down"),
)
TRANSFORMER_NAMES = (
    *norm("norm", "norm"),
    *dense("proj_in", "input"),
    *dense("proj_out", "output"),
)


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the table of names of a U-Net."""
    lines = list(ENDS)
    for number, unit in enumerate(units_of(config)):
        ours = f"blocks/{number}/"
        lines += within(RESIDUAL_NAMES, f"{unit.prefix}resnets.{unit.index}.", f"{ours}residual/")
        if unit.is_middle:
            lines += within(RESIDUAL_NAMES, f"{unit.prefix}resnets.1.", f"{ours}second/")
        hf = f"{unit.prefix}attentions.{unit.index}."
        if unit.layers:
            lines += within(TRANSFORMER_NAMES, hf, f"{ours}transformer/")
        for layer in range(unit.layers):
            inner = f"{hf}transformer_blocks.{layer}."
            lines += within(LAYER_NAMES, inner, f"{ours}transformer/{layer}/")
        if unit.resized is not None:
            lines += dense(f"{unit.prefix}{unit.resized}samplers.0.conv", f"{ours}resize")
    return tuple(lines)


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the U-Nets with a config.json's blocks."""
    del families, from_two
    config = Config.from_hf(fields, tuple(fields))
    tensors = TensorNames({MODEL_TYPE: names_of(config)}, {}, (), fresh=())
    return Family(MODEL_TYPE, Config, MODEL_TYPES, tensors, towers, text=False, head=("output/",))


FAMILY = ComposedFamily("unet", Config, MODEL_TYPES, compose)
