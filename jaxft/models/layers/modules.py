"""Modules that blocks are made of, which hold parameters and nothing else.

A module is built with the shapes of its parameters only; its values come from the flat dict
when `tower.Part.bind` puts them in. Modules compute in the type of their input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxft.models.layers.math import embed, layer_norm, linear, rms_norm


@dataclass(frozen=True)
class Leaf:
    """Description of a parameter.

    Args:
        shape: its shape.
        axes: a logical axis name per dimension, for sharding rules.
        mean: the mean of the initial value.
        std: the standard deviation of the initial value (normal); 0 for a constant.
        decay: whether weight decay applies to it.
        spread: the largest distance of the initial value from the mean (uniform), if not normal.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    mean: float = 0.0
    std: float = 0.0
    decay: bool = True
    spread: float = 0.0


def parameter(leaf: Leaf) -> nnx.Param:
    """Make a module's parameter, which has a description and no value yet."""
    return nnx.Param(jax.ShapeDtypeStruct(leaf.shape, jnp.float32), leaf=leaf)


def tokens(count: int, width: int, std: float) -> nnx.Param:
    """Build learned vectors beside those of an image's patches, or added to them: [1, N, D].

    Args:
        count: N.
        width: D.
        std: the standard deviation of fresh ones; none of them decays.
    """
    return parameter(Leaf((1, count, width), ("one", "tokens", "embed"), std=std, decay=False))


class Linear(nnx.Module):
    """Linear map x W + b, or x W, with the kernel [I, O].

    Args:
        inside, outside: I and O.
        axes: the logical names of I and O.
        std: the standard deviation of a fresh kernel.
        bias: whether there is a b.
    """

    def __init__(
        self, inside: int, outside: int, axes: tuple[str, str], std: float, bias: bool = True
    ):
        self.kernel = parameter(Leaf((inside, outside), axes, std=std))
        self.bias = parameter(Leaf((outside,), axes[1:], decay=False)) if bias else None
        self.path = ""  # in its part, which sets it: the name of the product

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Map `x`; `key` is the block's dropout key, for an adapter in this one's place."""
        bias = None if self.bias is None else self.bias[...]
        return checkpoint_name(linear(x, self.kernel[...], bias), self.path)


class LayerNorm(nnx.Module):
    """Layer normalization with a scale and a bias of width D, a scale alone, or neither.

    Args:
        width: D.
        eps: added to the variance.
        affine: whether there is a scale.
        bias: whether there is a bias beside a scale.
    """

    def __init__(self, width: int, eps: float, affine: bool = True, bias: bool = True):
        scale, shift = Leaf((width,), ("embed",), mean=1.0, decay=False), affine and bias
        self.scale = parameter(scale) if affine else None
        self.bias = parameter(Leaf((width,), ("embed",), decay=False)) if shift else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jnp.ones(x.shape[-1], x.dtype) if self.scale is None else self.scale[...]
        bias = jnp.zeros_like(scale) if self.bias is None else self.bias[...]
        return layer_norm(x, scale, bias, self.eps)


class RMSNorm(nnx.Module):
    """Division by the root mean square, with a scale of width D.

    Args:
        width: D.
        eps: added to the mean square.
        axis: the logical name of D.
        from_one: whether the stored scale is an offset from 1, as Gemma's is.
    """

    def __init__(self, width: int, eps: float, axis: str = "embed", from_one: bool = False):
        fresh = 0.0 if from_one else 1.0
        self.scale = parameter(Leaf((width,), (axis,), mean=fresh, decay=False))
        self.eps = eps
        self.from_one = from_one

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...]
        scale = scale.astype(jnp.float32) + 1.0 if self.from_one else scale
        return rms_norm(x, scale, self.eps)


def span_scores(logits: jax.Array) -> dict[str, jax.Array]:
    """Return the scores of an answer's first and last token at each position.

    Args:
        logits: `[B, T, 2]`.

    Returns:
        `start_logits` and `end_logits`, `[B, T]` float32.
    """
    wide = logits.astype(jnp.float32)
    return {"start_logits": wide[..., 0], "end_logits": wide[..., 1]}


class Embedding(nnx.Module):
    """Table [V, D] of vectors.

    Args:
        count, width: V and D.
        axis: the logical name of V.
        std: the standard deviation of a fresh table.
        decay: whether weight decay applies to it (not to positions).
    """

    def __init__(self, count: int, width: int, axis: str, std: float, decay: bool = True):
        self.embedding = parameter(Leaf((count, width), (axis, "embed"), std=std, decay=decay))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return embed(self.embedding[...], ids)

    def scores(self, x: jax.Array) -> jax.Array:
        """Multiply `x` [..., D] with every row: `[..., V]`."""
        return lax.dot_general(x, self.embedding[...], (((x.ndim - 1,), (1,)), ((), ())))


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Split a key into `count`; without a key (no dropout) return as many None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


class Keys(NamedTuple):
    """Dropout keys of a module in a block; without keys there is no dropout.

    Attributes:
        own: the module's own.
        block: the block's, which linear maps pass to their adapters.
    """

    own: jax.Array | None
    block: jax.Array | None

    def split(self, count: int) -> list[Keys]:
        """Split the module's own key into `count`."""
        return [Keys(own, self.block) for own in split_key(self.own, count)]


def block_keys(key: jax.Array | None, count: int) -> list[Keys]:
    """Split a block's dropout key into the keys of its `count` modules."""
    return Keys(key, key).split(count)
