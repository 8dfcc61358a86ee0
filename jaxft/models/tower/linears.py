"""Parts of a tower with other modules in place of their linear maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxft.models.layers.math import (
    PRODUCT,
    WEIGHT_GRADIENT,
    affine,
    matmul_precision,
    weight_gradient,
)
from jaxft.models.layers.modules import Leaf, Linear, parameter
from jaxft.models.tower.tower import Part

GATE = "gate"  # the leaf of a gated linear map that says whether its kernel's gradient is computed


class GatedLinear(nnx.Module):
    """Linear map whose kernel's gradient is computed only where its gate is open.

    Args:
        plain: the linear map in whose place it is.
    """

    def __init__(self, plain: Linear):
        self.kernel, self.bias = plain.kernel, plain.bias
        self.gate = parameter(Leaf((), (), decay=False))
        self.path = plain.path  # the name of the product

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Map `x` as the plain one does; `key` is for an adapter in this one's place."""
        del key
        bias = None if self.bias is None else self.bias[...]
        product = _gated(x, self.kernel[...], bias, self.gate[...], matmul_precision())
        return checkpoint_name(checkpoint_name(product, PRODUCT), self.path)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _gated(x: Any, kernel: Any, bias: Any, gate: jax.Array, precision: Any) -> jax.Array:
    """Compute x W + b, whose gradient by W is zero, and not computed, where the gate is shut."""
    del gate
    return affine(x, kernel, bias, precision)


def _gated_forward(x: Any, kernel: Any, bias: Any, gate: Any, precision: Any) -> Any:
    return affine(x, kernel, bias, precision), (x, kernel, bias, gate)


def _gated_backward(precision: Any, residuals: Any, d_out: jax.Array) -> tuple[Any, ...]:
    x, kernel, bias, gate = residuals
    _, pull = jax.vjp(lambda x, bias: affine(x, kernel, bias, precision), x, bias)
    with jax.named_scope(WEIGHT_GRADIENT):
        d_kernel = lax.cond(
            gate,
            partial(weight_gradient, precision=precision),
            lambda *_: jnp.zeros_like(kernel),
            x,
            d_out,
        )
    d_x, d_bias = pull(d_out)
    return d_x, d_kernel, d_bias, None


_gated.defvjp(_gated_forward, _gated_backward)


def with_linears(part: Part, replace: Callable[[Linear, str], nnx.Module]) -> Part:
    """Return a part with a module in place of each linear map.

    Args:
        part: the part.
        replace: called with a linear map and its path in the part.
    """
    module = nnx.clone(part.module)
    linears = [
        (path, one) for path, one in nnx.iter_modules(part.module) if isinstance(one, Linear)
    ]
    for path, plain in linears:
        *above, last = path
        owner = reduce(getattr, map(str, above), module)
        setattr(owner, str(last), replace(plain, "/".join(map(str, path))))
    return Part(module)
