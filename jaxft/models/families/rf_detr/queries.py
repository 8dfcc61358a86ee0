"""The way from an RF-DETR's backbone to its decoder: one image, and the queries' boxes.

A projector makes one image of the backbone's outputs. Each of its pixels proposes a box; the boxes
of the likeliest pixels are where the queries begin.

B rows, R x C pixels, D width, G groups of Q queries.

Source: Robinson et al. (2025), https://arxiv.org/abs/2511.09554; groups: Chen et al. (2022),
https://arxiv.org/abs/2207.13085; the computation follows `transformers`' `modeling_rf_detr.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxft.models.families.rf_detr.backbone import Context, as_image
from jaxft.models.families.rf_detr.backbone import Stream as BackboneStream
from jaxft.models.families.rf_detr.config import Config
from jaxft.models.layers.cache import BlockCache
from jaxft.models.layers.math import ACTIVATIONS
from jaxft.models.layers.modules import Embedding, LayerNorm, Leaf, Linear, parameter
from jaxft.models.layers.vision import Convolution, Size

NORM_EPS = 1e-5  # of the decoder's norms
LEAST, MOST = 0.01, 0.99  # of the coordinates of a pixel that may propose a box
SIDE = 0.05  # of the box that a pixel starts from, as a share of the image


class Stream(NamedTuple):
    """Stream of the decoder.

    Attributes:
        x: the queries, [B, G Q, D].
        position: what is added to them before each attention, [B, G Q, D].
        image: [B, R C, D].
        boxes: where the queries begin, [B, G Q, 4] float32, center, width and height.
        first: the pixels that they begin at, [B, G Q, D].
        first_logits: the classes of these, [B, G Q, C].
        first_boxes: the boxes that these propose, [B, G Q, 4] float32.
        layers: the queries behind each block so far.
    """

    x: jax.Array
    position: jax.Array
    image: jax.Array
    boxes: jax.Array
    first: jax.Array
    first_logits: jax.Array
    first_boxes: jax.Array
    layers: tuple[jax.Array, ...] = ()


class Layers(nnx.Module):
    """Stack of linear maps from width I, with a ReLU between them.

    Args:
        inside: I.
        outside: the width behind each map.
        std: the standard deviation of fresh kernels.
    """

    def __init__(self, inside: int, outside: tuple[int, ...], std: float):
        widths = zip((inside, *outside[:-1]), outside, strict=True)
        self.layers = nnx.List([Linear(i, o, ("embed", "mlp"), std) for i, o in widths])

    @classmethod
    def of_boxes(cls, width: int, std: float) -> Layers:
        """Return the maps of a change of a box, which is none at first."""
        made = cls(width, (width, width, 4), std)
        made.layers[-1] = Linear(width, 4, ("embed", "mlp"), 0.0)
        return made

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        for number, layer in enumerate(self.layers):
            x = layer(x if number == 0 else jax.nn.relu(x), key)
        return x


def class_head(width: int, num_labels: int, std: float) -> Linear:
    """Return the map to the scores of classes, each of which is 0.01 at first.

    Source: Lin et al. (2017), https://arxiv.org/abs/1708.02002, section 4.1.
    """
    head = Linear(width, num_labels, ("embed", "labels"), std)
    head.bias = parameter(Leaf((num_labels,), ("labels",), mean=-math.log(99), decay=False))
    return head


class NormedConvolution(nnx.Module):
    """Convolution without a bias, a norm over the channels of each pixel, and an activation."""

    def __init__(self, config: Config, inside: int, outside: int, side: int):
        self.conv = Convolution(inside, outside, side, bias=False)
        self.norm = LayerNorm(outside, config.fields["layer_norm_eps"])
        self.activation = config.fields["activation_function"]

    def __call__(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.activation](self.norm(self.conv(x)))


class Bottleneck(nnx.Module):
    """Two convolutions over squares of three pixels: [B, R, C, H] -> [B, R, C, H]."""

    def __init__(self, config: Config, width: int):
        self.conv1 = NormedConvolution(config, width, width, 3)
        self.conv2 = NormedConvolution(config, width, width, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv2(self.conv1(x))


class Projector(nnx.Module):
    """Projector of the backbone's outputs side by side to one image: [B, R, C, I] -> [B, R, C, D].

    Its output reads the middle of each of its bottlenecks (C2f).
    """

    def __init__(self, config: Config):
        own = config.fields
        inside = config.backbone.fields["hidden_size"] * len(config.outputs)
        self.hidden, blocks = int(own["d_model"] * own["hidden_expansion"]), own["c2f_num_blocks"]
        self.conv1 = NormedConvolution(config, inside, 2 * self.hidden, 1)
        self.bottlenecks = nnx.List([Bottleneck(config, self.hidden) for _ in range(blocks)])
        self.conv2 = NormedConvolution(config, (2 + blocks) * self.hidden, own["d_model"], 1)
        self.norm = LayerNorm(own["d_model"], 1e-6)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = jnp.split(self.conv1(x), 2, axis=-1)
        for bottleneck in self.bottlenecks:
            parts.append(bottleneck(parts[-1]))
        return self.norm(self.conv2(jnp.concatenate(parts, axis=-1)))


class Proposer(nnx.Module):
    """Proposer of a group of queries: the likeliest pixels, and the boxes that they propose."""

    def __init__(self, config: Config, num_labels: int):
        own = config.fields
        width, std = own["d_model"], own["init_std"]
        self.map = Linear(width, width, ("embed", "mlp"), std)
        self.norm = LayerNorm(width, NORM_EPS)
        self.head = class_head(width, num_labels, std)
        self.box_mlp = Layers.of_boxes(width, std)
        self.queries = own["num_queries"]

    def __call__(
        self, image: jax.Array, size: Size, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the pixels [B, Q, D], their classes [B, Q, C], and their boxes [B, Q, 4].

        Args:
            image: [B, R C, D].
            size: R and C.
            key: the block's, for adapters.
        """
        start, valid = proposals(size)
        x = jnp.where(valid[:, None], image, jnp.zeros((), image.dtype))
        x = self.norm(self.map(x, key))
        scores = self.head(x, key).astype(jnp.float32).max(-1)
        _, best = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), self.queries)  # [B, Q]
        boxes = refined(jnp.asarray(start), self.box_mlp(x, key))
        x, boxes = at_pixels(x, best), at_pixels(boxes, best)
        return x, self.head(x, key), boxes


def proposals(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Return the box that each pixel starts from, [R C, 4] float32, and whether it may propose one.

    Pixels at the very edge may not; their box is 0.
    """
    rows, columns = size
    down, across = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    center = np.stack([across, down], -1).astype(np.float32).reshape(-1, 2) + np.float32(0.5)
    center /= np.array([columns, rows], np.float32)
    boxes = np.concatenate([center, np.full_like(center, SIDE)], axis=1)
    valid = np.all((boxes > np.float32(LEAST)) & (boxes < np.float32(MOST)), axis=1)
    return np.where(valid[:, None], boxes, np.float32(0.0)), valid


def at_pixels(values: jax.Array, pixels: jax.Array) -> jax.Array:
    """Return the values of some pixels, by a matmul with ones: [B, N, V], [B, Q] -> [B, Q, V].

    A gather by indices of each row's own, and its scatter backward, are slow on a TPU.
    """
    chosen = jax.nn.one_hot(pixels, values.shape[1], dtype=values.dtype)
    return jnp.einsum("bqn,bnv->bqv", chosen, values, precision="highest")


def refined(boxes: jax.Array, change: jax.Array) -> jax.Array:
    """Move boxes by shares of their size, and scale them: [..., 4] float32."""
    change, boxes = change.astype(jnp.float32), boxes.astype(jnp.float32)
    extent = boxes[..., 2:]
    center = change[..., :2] * extent + boxes[..., :2]
    return jnp.concatenate([center, jnp.exp(change[..., 2:]) * extent], axis=-1)


def box_sinusoids(boxes: jax.Array, width: int) -> jax.Array:
    """Compute sines and cosines of the coordinates: [..., 4] -> [..., 4 width] float32.

    Args:
        boxes: center, width and height; the center's place down comes first.
        width: of each coordinate, an even number.
    """
    powers = np.float32(10_000) ** (2 * (np.arange(width) // 2) / width).astype(np.float32)
    across, down, *extent = jnp.split(boxes, 4, axis=-1)
    ordered = jnp.stack([down, across, *extent], axis=-2)  # [..., 4, 1]
    angles = ordered * np.float32(2 * math.pi) / powers
    waves = jnp.stack([jnp.sin(angles[..., 0::2]), jnp.cos(angles[..., 1::2])], axis=-1)
    return waves.reshape(*boxes.shape[:-1], -1)


class Selection(nnx.Module):
    """Block between backbone and decoder, which makes the decoder's stream.

    Args:
        config: the detector's.
        num_labels: the number of classes.
    """

    def __init__(self, config: Config, num_labels: int):
        own, backbone = config.fields, config.backbone.fields
        width, std = own["d_model"], own["init_std"]
        self.backbone_norm = LayerNorm(backbone["hidden_size"], backbone["layer_norm_eps"])
        self.projector = Projector(config)
        count = own["group_detr"]
        self.groups = nnx.List([Proposer(config, num_labels) for _ in range(count)])
        queries = count * own["num_queries"]
        self.boxes = Embedding(queries, 4, "queries", 0.0, decay=False)
        self.queries = Embedding(queries, width, "queries", 1.0, decay=False)
        self.position_mlp = Layers(2 * width, (width, width), std)
        self.windows, self.width = backbone["num_windows"], width

    def __call__(
        self, stream: BackboneStream, context: Context, key: jax.Array | None, cache: BlockCache
    ) -> tuple[Stream, BlockCache]:
        outputs = [self.backbone_norm(one) for one in stream[1]]
        images = [as_image(one, context.grid, self.windows) for one in outputs]
        image = self.projector(jnp.concatenate(images, axis=-1))
        image = image.reshape(len(image), -1, self.width)
        each = [self.groups[group](image, context.grid, key) for group in range(context.groups)]
        first, logits, proposed = (jnp.concatenate(parts, 1) for parts in zip(*each, strict=True))
        count = first.shape[1]
        boxes = refined(jax.lax.stop_gradient(proposed), self.boxes.embedding[:count])
        waves = box_sinusoids(boxes, self.width // 2).astype(image.dtype)
        position = self.position_mlp(waves, key)
        x = jnp.broadcast_to(self.queries.embedding[:count], first.shape)
        return Stream(x, position, image, boxes, first, logits, proposed), cache
