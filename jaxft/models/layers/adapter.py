"""Linear map with LoRA: low-rank matrices beside its kernel, trained in its place."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxft.models.layers.math import dropout, linear
from jaxft.models.layers.modules import Leaf, Linear, parameter
from jaxft.models.quantized import Kernel, dense


@dataclass(frozen=True)
class LowRank:
    """Adapter of a kernel [I, O].

    Args:
        rank: r, of the matrices [I, r] and [r, O].
        scale: the factor on their product, alpha / r.
        dora: whether each column of the sum has a magnitude, a parameter too.
        rate: dropout of the matrices' input.
    """

    rank: int
    scale: float
    dora: bool = False
    rate: float = 0.0


class LowRankLinear(nnx.Module):
    """x W + (x A) B scale + b; with DoRA, the columns of W + A B scale at the lengths m.

    W + A B is never formed for the product with x, so that a frozen W costs no gradient of its
    size.

    Args:
        plain: the linear map with W and b.
        low_rank: its adapter.
        path: the map's path in its block, `attention/query`, which seeds its dropout.

    Source: Hu et al. (2021), https://arxiv.org/abs/2106.09685; Liu et al. (2024),
    https://arxiv.org/abs/2402.09353. As in their code, A starts as a `torch.nn.Linear` does
    (uniform, up to 1 / sqrt(I)), B at 0 and m at the columns' own lengths, and no gradient goes
    through the lengths that are divided by. Dropout applies to the matrices' input alone.
    """

    def __init__(self, plain: Linear, low_rank: LowRank, path: str):
        self.kernel, self.bias = plain.kernel, plain.bias
        leaf: Leaf = plain.kernel.get_metadata()["leaf"]
        (inside, outside), (axis_in, axis_out) = leaf.shape, leaf.axes
        rank = low_rank.rank
        self.lora_a = parameter(Leaf((inside, rank), (axis_in, "rank"), spread=inside**-0.5))
        self.lora_b = parameter(Leaf((rank, outside), ("rank", axis_out)))
        length = Leaf((outside,), (axis_out,), mean=1.0, decay=False)
        self.magnitude = parameter(length) if low_rank.dora else None
        self.scale, self.rate = low_rank.scale, low_rank.rate
        self.path, self.path_number = path, zlib.crc32(path.encode())

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Map `x` [..., I] to [..., O]; the block's dropout key turns dropout on."""
        own = None if key is None or not self.rate else jax.random.fold_in(key, self.path_number)
        kernel, a, b = self.kernel[...], self.lora_a[...], self.lora_b[...]
        bias = None if self.bias is None else self.bias[...]
        added = linear(linear(dropout(x, self.rate, own), a, None), b, None) * self.scale
        if self.magnitude is None:
            return checkpoint_name(linear(x, kernel, bias) + added, self.path)
        constants = lax.stop_gradient((kernel, a, b))
        lengths = column_lengths(*constants, self.scale)
        out = (linear(x, kernel, None) + added) * (self.magnitude[...] / lengths).astype(x.dtype)
        return checkpoint_name(out if bias is None else out + bias, self.path)


def column_lengths(kernel: Kernel, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Return the length of each column of W + A B scale: [O] float32."""
    return jnp.sqrt(jnp.square(summed(kernel, a, b, scale)).sum(0))


def summed(kernel: Kernel, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Return W + A B scale: [I, O] float32."""
    return dense(kernel).astype(jnp.float32) + (a @ b).astype(jnp.float32) * scale
