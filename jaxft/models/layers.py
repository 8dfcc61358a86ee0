"""The parts that blocks are made of: plain functions on arrays, and modules that hold parameters.

A module is built with the shapes of its parameters only; its values come from the flat dict
when `transformer.Part.bind` puts them in. Modules compute in the type of their input and keep
what is sensitive (softmax, normalisation) in float32. Letters: B batch, T positions, D width,
H heads, K width of a head, S source positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


@dataclass(frozen=True)
class Leaf:
    """What is known of a parameter before its value.

    Args:
        shape: its shape.
        axes: a logical axis name per dimension (what sharding rules speak of).
        mean: the mean of a fresh value.
        std: the standard deviation of a fresh value (normal); 0 for a constant.
        decay: whether weight decay is meant for it.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    mean: float = 0.0
    std: float = 0.0
    decay: bool = True


def parameter(leaf: Leaf) -> nnx.Param:
    """A parameter of a module that has a description and no value yet."""
    return nnx.Param(jax.ShapeDtypeStruct(leaf.shape, jnp.float32), leaf=leaf)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x W + b: `[..., I] -> [..., O]`, with `kernel` [I, O]."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))) + bias


def embed(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of `table` [V, D] at `ids` [...]: `[..., D]`."""
    return table[ids]


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer normalisation over the last axis, in float32 inside.

    Source: Ba, Kiros, Hinton (2016), https://arxiv.org/abs/1607.06450.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normal = centred * lax.rsqrt(variance + eps)
    return (normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """GELU through the exact error function, as BERT and ViT have it."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU through its tanh approximation, as GPT-2 has it."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` keys out of one; no key (no dropout) stays no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 words by a counter hash: what dropout needs, at a fraction of threefry's cost.

    The counter is the element's index in the whole array, so the words do not depend on how the
    array is sharded. The two multiply-and-shift rounds are a 32-bit finaliser; the second half of
    the key enters between them, so that two keys never give shifted copies of one sequence.

    Source: Wellons (2018), "Prospecting for Hash Functions" (the lowbias32 constants).
    """
    start, middle = jax.random.bits(key, (2,), jnp.uint32)
    word = jnp.zeros(shape, jnp.uint32) + start
    stride = 1
    for axis in reversed(range(len(shape))):
        word += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = ((word ^ middle) ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with a share `rate` of its elements zeroed and the rest scaled up; no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    kept = random_words(key, x.shape) >= jnp.uint32(int(rate * 2**32))
    return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    heads: int,
    rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Softmax attention in which a position sees the positions of its own segment.

    Args:
        query, key, value: [B, T, D].
        segments: [B, T] int32: positions with the same number see each other.
        heads: the number of heads H; D = H K.
        rate: dropout on the attention weights.
        dropout_key: None turns that dropout off.

    Returns:
        [B, T, D].

    Source: Vaswani et al. (2017), https://arxiv.org/abs/1706.03762.
    """
    batch, length, width = query.shape
    # Heads first: XLA:CPU runs the two products as plain batched matmuls in this layout.
    query, key, value = (
        x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)  # [B, H, T, K]
        for x in (query, key, value)
    )
    query = query * jnp.asarray(1.0 / math.sqrt(width // heads), query.dtype)
    scores = jnp.einsum("bhtk,bhsk->bhts", query, key).astype(jnp.float32)
    same = segments[:, None, :, None] == segments[:, None, None, :]  # [B, 1, T, S]
    weights = jax.nn.softmax(jnp.where(same, scores, jnp.finfo(jnp.float32).min), axis=-1)
    weights = dropout(weights.astype(value.dtype), rate, dropout_key)
    mixed = jnp.einsum("bhts,bhsk->bhtk", weights, value)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, width)


class Linear(nnx.Module):
    """x W + b, with the kernel [I, O].

    Args:
        inside, outside: I and O.
        axes: the logical names of I and O.
        std: the standard deviation of a fresh kernel.
    """

    def __init__(self, inside: int, outside: int, axes: tuple[str, str], std: float):
        self.kernel = parameter(Leaf((inside, outside), axes, std=std))
        self.bias = parameter(Leaf((outside,), axes[1:], decay=False))

    def __call__(self, x: jax.Array) -> jax.Array:
        return linear(x, self.kernel[...], self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation with a scale and a bias of width D."""

    def __init__(self, width: int, eps: float):
        self.scale = parameter(Leaf((width,), ("embed",), mean=1.0, decay=False))
        self.bias = parameter(Leaf((width,), ("embed",), decay=False))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], self.eps)


class Embedding(nnx.Module):
    """A table [V, D] of vectors.

    Args:
        count, width: V and D.
        axis: the logical name of V.
        std: the standard deviation of a fresh table.
        decay: whether weight decay is meant for it (not for positions).
    """

    def __init__(self, count: int, width: int, axis: str, std: float, decay: bool = True):
        self.embedding = parameter(Leaf((count, width), (axis, "embed"), std=std, decay=decay))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return embed(self.embedding[...], ids)

    def scores(self, x: jax.Array) -> jax.Array:
        """The product of `x` [..., D] with every row: `[..., V]`."""
        return lax.dot_general(x, self.embedding[...], (((x.ndim - 1,), (1,)), ((), ())))
