"""Backbone of an RF-DETR: a DINOv2 whose blocks see a window of the image, or all of it.

The tokens of an image [B, N, D] lie window by window, each with a class token of its own. The
stream is these, and a place for each output that the detector reads, which a block fills.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.models.families.rf_detr.config import Config
from jaxft.models.families.vit.vit import Attention, Embeddings, Mlp, needs_of
from jaxft.models.layers.attention import Mask, make_mask
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.kernels import Needs
from jaxft.models.layers.modules import block_keys
from jaxft.models.layers.vision import Size, grid_of
from jaxft.models.tower.tower import Compute, Part

Stream = tuple[jax.Array, tuple[jax.Array, ...]]  # tokens, and the outputs of some depths


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """Context of the blocks: how attention is computed, and the sizes of the batch.

    Args:
        window, image, queries: masks of attention over a window, an image, and a group of queries;
            None where XLA computes it.
        grid: patches down and across.
        groups: groups of queries that run: all of them in training, else the first.
    """

    window: Mask | None
    image: Mask | None
    queries: Mask | None
    grid: Size = field(metadata={"static": True})
    groups: int = field(metadata={"static": True})


class Stem(nnx.Module):
    """Stem: the embeddings of the patches, cut into windows."""

    def __init__(self, config: Config):
        own = config.fields
        self.embeddings = Embeddings(config.backbone)
        self.config = config
        heads = own["decoder_self_attention_heads"]
        self.needs = needs_of(config.backbone)
        self.query_needs = Needs(heads, heads, own["d_model"] // heads, own["attention_dropout"])

    def __call__(
        self, batch: Batch, key: jax.Array | None, compute: Compute
    ) -> tuple[Stream, Context]:
        pixels, own = batch["pixel_values"], self.config.fields
        self.config.check_image(pixels.shape[2:])
        grid = grid_of(pixels.shape[2:], self.config.backbone.patch)
        windows = self.config.backbone.fields["num_windows"]
        x = in_windows(self.embeddings(pixels, key), grid, windows)
        rows, length = x.shape[:2]
        groups = own["group_detr"] if compute.dropout else 1
        context = Context(
            _mask(compute, self.needs, (rows * windows**2, length // windows**2)),
            _mask(compute, self.needs, (rows, length)),
            _mask(compute, self.query_needs, (rows * groups, own["num_queries"])),
            grid,
            groups,
        )
        outputs = self.config.outputs
        first = [x if depth == 0 else jnp.zeros_like(x) for depth in outputs]
        return (x, tuple(first)), context


def _mask(compute: Compute, needs: Needs, shape: tuple[int, int]) -> Mask | None:
    """Return the mask of a kernel under which all positions see each other; None for XLA."""
    kernel = compute.kernel(needs, shape)
    return None if kernel is None else make_mask(jnp.zeros(shape, jnp.int32), kernel=kernel)


def in_windows(x: jax.Array, grid: Size, windows: int) -> jax.Array:
    """Lay tokens out window by window, the class token before each: [B, 1 + R C, D] -> [B, N, D].

    Args:
        x: the class token, and patches row by row.
        grid: R and C.
        windows: down and across.
    """
    rows, columns, width = grid[0] // windows, grid[1] // windows, x.shape[-1]
    # As `transformers` has it, which takes columns for rows where an image is no square.
    patches = x[:, 1:].reshape(len(x), windows, columns, windows, rows, width)
    patches = patches.swapaxes(2, 3).reshape(len(x), windows**2, rows * columns, width)
    first = jnp.broadcast_to(x[:, None, :1], (len(x), windows**2, 1, width))
    return jnp.concatenate([first, patches], axis=2).reshape(len(x), -1, width)


def as_image(x: jax.Array, grid: Size, windows: int) -> jax.Array:
    """Lay tokens out as an image, without class tokens: [B, N, D] -> [B, R, C, D]."""
    rows, columns, width = grid[0] // windows, grid[1] // windows, x.shape[-1]
    patches = x.reshape(len(x), windows**2, -1, width)[:, :, 1:]
    patches = patches.reshape(len(x), windows, windows, rows, columns, width)
    return patches.swapaxes(2, 3).reshape(len(x), *grid, width)


class Block(nnx.Module):
    """DINOv2's block, whose attention is over each window or over all of them.

    Args:
        config: the detector's.
        windowed: whether it is over each window.
        output: which of the outputs its stream is; None for none.
    """

    def __init__(self, config: Config, windowed: bool, output: int | None):
        self.attention = Attention(config.backbone)
        self.mlp = Mlp(config.backbone)
        self.windows = config.backbone.fields["num_windows"] ** 2 if windowed else 1
        self.windowed, self.output = windowed, output

    def __call__(
        self, stream: Stream, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[Stream, BlockCache]:
        attention_keys, mlp_keys = block_keys(key, 2)
        (x, outputs), shape = stream, stream[0].shape
        mask = context.window if self.windowed else context.image
        x = x.reshape(shape[0] * self.windows, -1, shape[2])
        x = self.mlp(self.attention(x, mask, attention_keys).reshape(shape), mlp_keys)
        if self.output is not None:
            outputs = (*outputs[: self.output], x, *outputs[self.output + 1 :])
        return (x, outputs), cache


def blocks_of(config: Config) -> tuple[Part, ...]:
    """Build the blocks; alike ones are one object."""

    @cache
    def part(windowed: bool, output: int | None) -> Part:
        return Part(Block(config, windowed, output))

    def output_of(block: int) -> int | None:
        depth = block + 1
        return config.outputs.index(depth) if depth in config.outputs else None

    count = config.backbone.fields["num_hidden_layers"]
    return tuple(part(block in config.windowed, output_of(block)) for block in range(count))
