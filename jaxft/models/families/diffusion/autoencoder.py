"""The autoencoder of latent diffusion: an image to the distribution of a small latent, and back.

Source: Rombach et al. (2022), https://arxiv.org/abs/2112.10752. The computation follows
`diffusers`' `autoencoder_kl.py` and `vae.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.errors import UserError
from jaxft.models.families.diffusion.modules import (
    BELOW,
    RESIDUAL_NAMES,
    STD,
    GroupNorm,
    Residual,
    check_groups,
    doubled,
)
from jaxft.models.family import ComposedFamily, Family, Towers
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.cross import AttentionMaps
from jaxft.models.layers.modules import block_keys, split_key
from jaxft.models.layers.vision import Convolution, channels_first, channels_last
from jaxft.models.tower.run import run_tower
from jaxft.models.tower.tower import Compute, Params, Part, Tower
from jaxft.models.weights.config_fields import check_choices, check_lists, check_numbers
from jaxft.models.weights.hf_config import DIFFUSERS_FIELDS, HfConfig
from jaxft.models.weights.names import Name, dense, norm
from jaxft.models.weights.tensor_names import TensorNames, within

MODEL_TYPE = "AutoencoderKL"
HEAD = "autoencoder"
MODEL_TYPES: dict[str, dict[str | None, str]] = {MODEL_TYPE: {HEAD: MODEL_TYPE}}
EPS = 1e-6
LOG_VARIANCES = (-30.0, 20.0)  # the least and the most
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
SIZES = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")


class Config(HfConfig):
    """Config of an autoencoder."""

    FIXED: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
    }
    UNREAD: ClassVar[tuple[str, ...]] = (*DIFFUSERS_FIELDS, "force_upcast")

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        own = cls._read(fields, DEFAULTS, SIZES, ignore)
        check_numbers("layers_per_block", [own["layers_per_block"]])
        check_lists(own, ("down_block_types", "up_block_types"), "block_out_channels")
        check_groups(own["block_out_channels"], own["norm_num_groups"])
        for name in ("down_block_types", "up_block_types"):
            check_choices(name, own[name], DEFAULTS[name])
        return cls(MODEL_TYPE, own)

    def with_dropout(self, rate: float) -> Self:
        del rate
        return self  # it has none

    @property
    def factor(self) -> int:
        """Return how many times smaller a side of the latent is than the image's."""
        return 2 ** (len(self.fields["block_out_channels"]) - 1)


def down_widths(config: Config) -> list[tuple[str, int, int, str | None]]:
    """List the residual blocks down: prefix in a file, channels in and out, and what follows."""
    return list(_levels(config.fields["block_out_channels"], config.fields["layers_per_block"]))


def up_widths(config: Config) -> list[tuple[str, int, int, str | None]]:
    """List the residual blocks up, as `down_widths` does."""
    widths = config.fields["block_out_channels"][::-1]
    return list(_levels(widths, config.fields["layers_per_block"] + 1, "up"))


def _levels(
    widths: Sequence[int], count: int, direction: str = "down"
) -> Iterator[tuple[str, int, int, str | None]]:
    inside = widths[0]
    for level, width in enumerate(widths):
        for index in range(count):
            last = index == count - 1 and level < len(widths) - 1
            yield f"{direction}_blocks.{level}.", inside, width, direction if last else None
            inside = width


class Block(nnx.Module):
    """Residual block, and a smaller or larger image after the last of a level.

    Args:
        inside, outside: its channels.
        groups: of the norms.
        resized: `down`, `up` or None.
    """

    def __init__(self, inside: int, outside: int, groups: int, resized: str | None):
        self.residual = Residual(inside, outside, None, groups, EPS)
        stride, padding = (2, BELOW) if resized == "down" else (1, None)
        self.resize = Convolution(outside, outside, 3, stride, padding) if resized else None
        self.grows = resized == "up"

    def __call__(
        self, x: jax.Array, context: None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        x = self.residual(x)
        x = doubled(x) if self.grows else x
        return (x if self.resize is None else self.resize(x)), cache


class Middle(nnx.Module):
    """Two residual blocks, with attention over all pixels between them.

    Args:
        width: the channels.
        groups: of the norms.
        attends: whether there is attention.
    """

    def __init__(self, width: int, groups: int, attends: bool):
        self.first = Residual(width, width, None, groups, EPS)
        self.norm = GroupNorm(width, groups, EPS) if attends else None
        self.attention = AttentionMaps(width, 1, STD, 0.0) if attends else None
        self.second = Residual(width, width, None, groups, EPS)

    def __call__(
        self, x: jax.Array, context: None, key: jax.Array | None, cache: BlockCache
    ) -> tuple[jax.Array, BlockCache]:
        x = self.first(x)
        if self.attention is not None and self.norm is not None:
            pixels = self.norm(x).reshape(len(x), -1, x.shape[-1])
            (keys,) = block_keys(key, 1)
            x += self.attention.attend(pixels, None, keys)[0].reshape(x.shape)
        return self.second(x), cache


class EncoderStem(nnx.Module):
    """Stem of the encoder: a convolution of `pixel_values` [B, C, H, W]."""

    def __init__(self, config: Config):
        own = config.fields
        self.input = Convolution(own["in_channels"], own["block_out_channels"][0])
        self.channels, self.factor = own["in_channels"], config.factor

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, None]:
        height, width = batch["pixel_values"].shape[2:]
        if height % self.factor or width % self.factor:
            raise UserError(
                f"The images are {height} x {width}; the autoencoder takes multiples of "
                f"{self.factor}."
            )
        images = channels_last(batch["pixel_values"], self.channels)
        return self.input(images.astype(compute.dtype)), None


class EncoderTop(nnx.Module):
    """Top of the encoder: `latent_mean` and `latent_logvar` [B, C, h, w] float32."""

    def __init__(self, config: Config):
        own, width = config.fields, config.fields["block_out_channels"][-1]
        outside = 2 * own["latent_channels"]
        self.norm = GroupNorm(width, own["norm_num_groups"], EPS)
        self.output = Convolution(width, outside)
        self.quant = Convolution(outside, outside, 1) if own["use_quant_conv"] else None

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        x = self.output(jax.nn.silu(self.norm(x)))
        x = x if self.quant is None else self.quant(x)
        mean, logvar = jnp.split(channels_first(x).astype(jnp.float32), 2, axis=1)
        return {"latent_mean": mean, "latent_logvar": logvar.clip(*LOG_VARIANCES)}


class DecoderStem(nnx.Module):
    """Stem of the decoder: convolutions of `latents` [B, C, h, w], as the encoder gives them."""

    def __init__(self, config: Config):
        own, channels = config.fields, config.fields["latent_channels"]
        self.quant = Convolution(channels, channels, 1) if own["use_post_quant_conv"] else None
        self.input = Convolution(channels, own["block_out_channels"][-1])
        self.channels = channels

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[jax.Array, None]:
        x = channels_last(batch["latents"], self.channels).astype(compute.dtype)
        return self.input(x if self.quant is None else self.quant(x)), None


class DecoderTop(nnx.Module):
    """Top of the decoder: `sample` [B, C, H, W] float32, mostly from -1 to 1."""

    def __init__(self, config: Config):
        own, width = config.fields, config.fields["block_out_channels"][0]
        self.norm = GroupNorm(width, own["norm_num_groups"], EPS)
        self.output = Convolution(width, own["out_channels"])

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        pixels = self.output(jax.nn.silu(self.norm(x)))
        return {"sample": channels_first(pixels).astype(jnp.float32)}


def towers(config: Config, head: str | None, num_labels: int | None) -> dict[str, Tower]:
    """Build encoder and decoder; the middle is the encoder's last block, the decoder's first."""
    del head, num_labels
    own = config.fields
    groups, width = own["norm_num_groups"], own["block_out_channels"][-1]

    def middle() -> Part:
        return Part(Middle(width, groups, own["mid_block_add_attention"]))

    def blocks(widths: list[tuple[str, int, int, str | None]]) -> list[Part]:
        return [Part(Block(inside, out, groups, resized)) for _, inside, out, resized in widths]

    down, up = (*blocks(down_widths(config)), middle()), (middle(), *blocks(up_widths(config)))
    return {
        "encoder": Tower(
            Part(EncoderStem(config)), down, Part(EncoderTop(config)), prefix="encoder/"
        ),
        "decoder": Tower(
            Part(DecoderStem(config)), up, Part(DecoderTop(config)), prefix="decoder/"
        ),
    }


MIDDLE_NAMES = (
    *within(RESIDUAL_NAMES, "resnets.0.", "first/"),
    *norm("attentions.0.group_norm", "norm"),
    *dense("attentions.0.to_q", "attention/query"),
    *dense("attentions.0.to_k", "attention/key"),
    *dense("attentions.0.to_v", "attention/value"),
    *dense("attentions.0.to_out.0", "attention/output"),
    *within(RESIDUAL_NAMES, "resnets.1.", "second/"),
)
ENDS = (
    *dense("encoder.conv_in", "encoder/input"),
    *norm("encoder.conv_norm_out", "encoder/norm"),
    *dense("encoder.conv_out", "encoder/output"),
    *dense("quant_conv", "encoder/quant"),
    *dense("post_quant_conv", "decoder/quant"),
    *dense("decoder.conv_in", "decoder/input"),
    *norm("decoder.conv_norm_out", "decoder/norm"),
    *dense("decoder.conv_out", "decoder/output"),
)
# How older files name the attention's maps.
OLDER = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."))
OLDER_OUTPUT = (".proj_attn.", ".to_out.0.")


class AutoencoderNames(TensorNames):
    """Tensor names of an autoencoder, whose attention older files name otherwise."""

    def canonical(self, name: str) -> str:
        for older, own in (*OLDER, OLDER_OUTPUT):
            name = name.replace(older, own)
        return name


def names_of(config: Config) -> tuple[Name, ...]:
    """Return the table of names of an autoencoder."""
    lines = list(ENDS)
    for tower, widths, first, middle in (
        ("encoder", down_widths(config), 0, len(down_widths(config))),
        ("decoder", up_widths(config), 1, 0),
    ):
        lines += within(MIDDLE_NAMES, f"{tower}.mid_block.", f"{tower}/blocks/{middle}/")
        indices: dict[str, int] = {}
        for number, (prefix, _, _, resized) in enumerate(widths, first):
            index = indices[prefix] = indices.get(prefix, -1) + 1
            hf, ours = f"{tower}.{prefix}", f"{tower}/blocks/{number}/"
            lines += within(RESIDUAL_NAMES, f"{hf}resnets.{index}.", f"{ours}residual/")
            if resized is not None:
                lines += dense(f"{hf}{resized}samplers.0.conv", f"{ours}resize")
    return tuple(lines)


def run(
    parts: Towers, params: Params, batch: Batch, key: jax.Array | None, compute: Compute
) -> dict[str, jax.Array]:
    """Encode the `pixel_values` of a batch and decode its `latents`, whichever it has."""
    outputs: dict[str, jax.Array] = {}
    keys = split_key(key, 2)
    for name, read, own in (("encoder", "pixel_values", keys[0]), ("decoder", "latents", keys[1])):
        tower = parts[name]
        assert isinstance(tower, Tower)
        if read in batch:
            outputs |= run_tower(tower, params, batch, own, compute)
    return outputs


def compose(fields: Mapping[str, Any], families: Mapping[str, Any], from_two: bool) -> Family:
    """Build the family of the autoencoders with a config.json's blocks."""
    del families, from_two
    config = Config.from_hf(fields, tuple(fields))
    tensors = AutoencoderNames({MODEL_TYPE: names_of(config)}, {}, (), fresh=())
    return Family(
        MODEL_TYPE, Config, MODEL_TYPES, tensors, towers, text=False, apply=run, head=("output/",)
    )


FAMILY = ComposedFamily("autoencoder_kl", Config, MODEL_TYPES, compose)
