"""Arithmetic of layers as plain functions, each with the cheapest backward pass.

A custom backward pass saves less than jax's own and is faster on XLA:CPU; it is plain jax, so it
runs everywhere. Normalization is in float32 inside. The rules of a `custom_vjp` function call plain
functions only, so that a gradient can be differentiated forward once more (`studies.tuning`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxft.layerwise.counter_bits import counter_bits
from jaxft.models.quantized import Kernel, Quantized

PRODUCT = "product"  # the name of what a kernel gives, for those who keep it when much is not
WEIGHT_GRADIENT = "[dW]"  # the name, in a program, of what a kernel's own gradient costs


def linear(x: jax.Array, kernel: Kernel, bias: jax.Array | None) -> jax.Array:
    """Compute x W + b, or x W: `[..., I] -> [..., O]`, with `kernel` [I, O].

    Its backward pass is written out for one matmul's sake: XLA:CPU reads the left side of
    x^T dy badly, and an explicit transpose costs less than it saves.
    """
    product = _quantized_linear if isinstance(kernel, Quantized) else _linear
    return checkpoint_name(product(x, kernel, bias, matmul_precision()), PRODUCT)


def matmul_precision() -> str | None:
    """Return the matmul precision in force (`with jax.default_matmul_precision`).

    A backward pass is traced after that block has ended, so a function with a custom one passes
    the precision to it.
    """
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined] # made at run time


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, precision: Any) -> jax.Array:
    return affine(x, kernel, bias, precision)


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, precision: Any) -> jax.Array:
    """Compute x W + b, or x W, with jax's own backward pass."""
    out = lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision)
    return out if bias is None else out + bias


def _linear_forward(x: Any, kernel: Any, bias: Any, precision: Any) -> tuple[jax.Array, Any]:
    # Saved is only what a required gradient reads: a frozen kernel costs no matmul of its own.
    # Of the bias only its presence is saved, as an empty tuple.
    residuals = (
        x.value if kernel.perturbed else None,
        kernel.value if x.perturbed else None,
        None if bias is None else (),
    )
    values = x.value, kernel.value, None if bias is None else bias.value
    return affine(*values, precision), residuals


def _linear_backward(precision: Any, residuals: Any, d_out: jax.Array) -> tuple[Any, ...]:
    x, kernel, biased = residuals
    d_x = d_kernel = d_bias = None
    if biased is not None:
        d_bias = d_out.astype(jnp.float32).sum(range(d_out.ndim - 1)).astype(d_out.dtype)
    if kernel is not None:
        d_x = lax.dot_general(d_out, kernel, (((d_out.ndim - 1,), (1,)), ((), ())), precision)
    if x is not None:
        with jax.named_scope(WEIGHT_GRADIENT):
            d_kernel = weight_gradient(x, d_out, precision)
    return d_x, d_kernel, d_bias


def weight_gradient(x: jax.Array, y: jax.Array, precision: str | None) -> jax.Array:
    """Compute x^T y: [..., I], [..., O] -> [I, O], in the way that is cheapest on the platform.

    Rows and positions stay two axes: as one, where a mesh cuts both, XLA would gather them.
    """
    rows = tuple(range(x.ndim - 1))

    def of_transpose(x: jax.Array, y: jax.Array) -> jax.Array:
        """Have x^T in memory; the barriers keep XLA from folding it away."""
        turned = lax.optimization_barrier(jnp.moveaxis(lax.optimization_barrier(x), -1, 0))
        return lax.dot_general(turned, y, ((tuple(range(1, x.ndim)), rows), ((), ())), precision)

    def over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dot_general(x, y, ((rows, rows), ((), ())), precision)

    return lax.platform_dependent(x, y, cpu=of_transpose, default=over_rows)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _quantized_linear(x: Any, kernel: Quantized, bias: Any, precision: Any) -> jax.Array:
    return affine(x, kernel.astype(x.dtype).dense(), bias, precision)


def _quantized_forward(x: Any, kernel: Any, bias: Any, precision: Any) -> tuple[jax.Array, Any]:
    # Saved are the codes, which are in memory anyway.
    residuals = None, kernel, None if bias is None else ()
    return _quantized_linear(x, kernel, bias, precision), residuals


def _quantized_backward(precision: Any, residuals: Any, d_out: jax.Array) -> tuple[Any, ...]:
    x, kernel, biased = residuals
    numbers = kernel.astype(d_out.dtype).dense()
    d_x, _, d_bias = _linear_backward(precision, (x, numbers, biased), d_out)
    return d_x, None, d_bias


_quantized_linear.defvjp(_quantized_forward, _quantized_backward)


_linear.defvjp(_linear_forward, _linear_backward, symbolic_zeros=True)


def embed(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Look up rows of `table` [V, D] at `ids` [...]: `[..., D]`."""
    return table[ids]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Apply layer normalization over the last axis, in float32 inside.

    Its backward pass saves the input and two numbers a position.

    Source: Ba, Kiros, Hinton (2016), https://arxiv.org/abs/1607.06450.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    out = centred * inverse * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return out.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(eps: float, residuals: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, inverse, scale = residuals
    d_out = d_out.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    d_normal = d_out * scale.astype(jnp.float32)
    shared = d_normal.mean(-1, keepdims=True)
    along = (d_normal * normal).mean(-1, keepdims=True)
    d_x = inverse * (d_normal - shared - normal * along)
    rows = tuple(range(x.ndim - 1))
    d_scale = (d_out * normal).sum(rows).astype(scale.dtype)
    return d_x.astype(x.dtype), d_scale, d_out.sum(rows).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Divide `x` by its root mean square over the last axis, in float32 inside.

    Source: Zhang, Sennrich (2019), https://arxiv.org/abs/1910.07467.
    """
    return _rms_norm_forward(x, scale, eps)[0]


def _rms_norm_forward(x: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    out = wide * inverse * scale.astype(jnp.float32)
    return out.astype(x.dtype), (x, inverse, scale)


def _rms_norm_backward(eps: float, residuals: Any, d_out: jax.Array) -> tuple[jax.Array, ...]:
    x, inverse, scale = residuals
    d_out = d_out.astype(jnp.float32)
    normal = x.astype(jnp.float32) * inverse
    d_normal = d_out * scale.astype(jnp.float32)
    d_x = inverse * (d_normal - normal * (d_normal * normal).mean(-1, keepdims=True))
    d_scale = (d_out * normal).sum(tuple(range(x.ndim - 1)))
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Apply GELU by the exact error function, as BERT and ViT do.

    `jax.nn.gelu` goes through erfc, which costs three times erf on XLA:CPU; only x is saved.

    Source: Hendrycks, Gimpel (2016), https://arxiv.org/abs/1606.08415.
    """
    return _gelu(x)


def _gelu(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))


def _gelu_backward(x: jax.Array, d_out: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (1.0 / math.sqrt(2.0 * math.pi))
    slope = _normal_cdf(wide) + wide * density
    return ((d_out.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Apply GELU by its tanh approximation, as GPT-2 does."""
    return jax.nn.gelu(x, approximate=True)


def soft_capped(scores: jax.Array, most: float) -> jax.Array:
    """Bound `scores` smoothly to +-`most`, as Gemma does.

    Source: Gemma Team (2024), https://arxiv.org/abs/2408.00118.
    """
    return jnp.tanh(scores / most) * most


APPROXIMATE = ("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    **dict.fromkeys(("gelu", "gelu_python"), gelu),
    **dict.fromkeys(APPROXIMATE, gelu_tanh),
    **dict.fromkeys(("silu", "swish"), jax.nn.silu),
    "hardswish": jax.nn.hard_swish,
    # jax.nn.leaky_relu has the slope of the right side at 0.
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # GELU of OpenAI's CLIP
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero a share `rate` of the elements of `x` and scale up the rest; no key, no dropout.

    The backward pass regenerates the mask: only two words of the key are saved.
    """
    if key is None or rate == 0.0:
        return x
    return _dropout(x, rate, key_words(key))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _dropout(x: jax.Array, rate: float, words: jax.Array) -> jax.Array:
    return drop(x, rate, words)


def drop(x: jax.Array, rate: float, words: jax.Array) -> jax.Array:
    """Apply `dropout` at a rate above 0, from the words of a key."""
    return jnp.where(keep_mask(words, rate, x.shape), x * (1.0 / (1.0 - rate)), 0.0).astype(x.dtype)


_dropout.defvjp(
    lambda x, rate, words: (drop(x, rate, words), words),
    lambda rate, words, d_out: (drop(d_out, rate, words), None),
)


def key_words(key: jax.Array) -> jax.Array:
    """Return the two uint32 words [2] of a key that seed `keep_mask`."""
    return jax.random.bits(key, (2,), jnp.uint32)


def keep_mask(words: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Sample True with probability 1 - `rate`, independently for each element and key.

    Args:
        words: [2] uint32, from `key_words`.
        rate: the share of False, exact to 2^-32.
        shape: the shape of the mask.
    """
    return counter_bits(words, shape) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
