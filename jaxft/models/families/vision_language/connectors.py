"""Connectors: tops of an image tower that make vectors of a decoder's width out of its patches."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from jaxft.models.families.vision_language.config import VisionLanguageConfig
from jaxft.models.layers.batch import Batch
from jaxft.models.layers.math import ACTIVATIONS, linear
from jaxft.models.layers.modules import LayerNorm, Leaf, Linear, RMSNorm, parameter

STD = 0.02  # of a fresh connector
Connect = Callable[[jax.Array], jax.Array]


class Connector(nnx.Module):
    """Top of an image tower: its patches, normalized or as they are, as vectors of the decoder.

    Args:
        config: of both towers.
        connector: from patches to vectors.
    """

    def __init__(self, config: VisionLanguageConfig, connector: Connect):
        vision = config.vision.fields
        self.norm = LayerNorm(vision["hidden_size"], vision["layer_norm_eps"])
        self.connector = connector
        self.normalized = config.read is None

    def __call__(self, x: jax.Array, batch: Batch, key: jax.Array | None) -> dict[str, jax.Array]:
        """Connect the stream [B, P, D] to `last_hidden_state` [B, S, E]."""
        patches = self.norm(x) if self.normalized else x
        return {"last_hidden_state": self.connector(patches)}


def neighbors(x: jax.Array, grid: tuple[int, int], side: int) -> jax.Array:
    """Put the patches of each square of a grid together: [B, N P, D] -> [B, N S, F, F, D].

    Args:
        x: the patches of N tiles, row by row.
        grid: the patches of a tile, down and across.
        side: F, those of a square's side.
    """
    rows, columns = grid
    shape = -1, rows // side, side, columns // side, side, x.shape[-1]
    squares = x.reshape(shape).swapaxes(2, 3)  # [B N, h, w, F, F, D]
    return squares.reshape(len(x), -1, side, side, x.shape[-1])


class Shuffle(nnx.Module):
    """Squares of patches, side by side, mapped linearly, as Idefics3 and SmolVLM have it."""

    def __init__(self, config: VisionLanguageConfig):
        self.grid, self.side = config.vision.grid, config.side
        inner = config.vision.fields["hidden_size"] * self.side**2
        width = config.text.fields["hidden_size"]
        self.kernel = parameter(Leaf((inner, width), ("embed", "projected"), std=STD))

    def __call__(self, x: jax.Array) -> jax.Array:
        squares = neighbors(x, self.grid, self.side)
        return linear(squares.reshape(*squares.shape[:2], -1), self.kernel[...], None)


class Pool(nnx.Module):
    """Means of squares of patches, normalized and mapped linearly, as Gemma 3 has it."""

    def __init__(self, config: VisionLanguageConfig):
        vision, width = config.vision.fields, config.text.fields["hidden_size"]
        self.grid, self.side = config.vision.grid, config.side
        self.norm = RMSNorm(vision["hidden_size"], vision["layer_norm_eps"], from_one=True)
        axes = ("embed", "projected")
        self.kernel = parameter(Leaf((vision["hidden_size"], width), axes, std=STD))

    def __call__(self, x: jax.Array) -> jax.Array:
        means = neighbors(x, self.grid, self.side).mean((2, 3))
        return linear(self.norm(means), self.kernel[...], None)


class Mlp(nnx.Module):
    """Two linear maps of every patch with an activation between, as LLaVA has it."""

    def __init__(self, config: VisionLanguageConfig):
        inner, width = config.vision.fields["hidden_size"], config.text.fields["hidden_size"]
        bias = config.fields["multimodal_projector_bias"]
        self.up = Linear(inner, width, ("embed", "projected"), STD, bias)
        self.down = Linear(width, width, ("projected", "embed"), STD, bias)
        self.activation = config.fields["projector_hidden_act"]
        self.first = int(config.fields["vision_feature_select_strategy"] == "default")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x[:, self.first :])))


def projection(config: VisionLanguageConfig) -> Linear:
    """Build PaliGemma's connector: a linear map of every patch."""
    sizes = config.vision.fields["hidden_size"], config.text.fields["hidden_size"]
    return Linear(*sizes, ("embed", "projected"), STD)
