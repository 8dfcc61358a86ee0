"""Linear map with LoRA: low-rank matrices beside its kernel, trained in its place."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

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
        principal: whether the matrices start at the kernel's largest components (PiSSA).
    """

    rank: int
    scale: float
    dora: bool = False
    rate: float = 0.0
    principal: bool = False


class LowRankLinear(nnx.Module):
    """x W + (x A) B scale + b; with DoRA, the columns of W + A B scale at the lengths m.

    W + A B is never formed for the product with x, so that a frozen W costs no gradient of its
    size. With PiSSA, A and B start at W's largest components and W loses these: the frozen start
    of A and B is subtracted again, so that W itself stays the checkpoint's.

    Args:
        plain: the linear map with W and b.
        low_rank: its adapter.
        path: the map's path in its block, `attention/query`, which seeds its dropout.

    Source: Hu et al. (2021), https://arxiv.org/abs/2106.09685; Liu et al. (2024),
    https://arxiv.org/abs/2402.09353; Meng et al. (2024), https://arxiv.org/abs/2404.02948. As in
    LoRA's and DoRA's code, A starts as a `torch.nn.Linear` does
    (uniform, up to 1 / sqrt(I)), B at 0 and m at the columns' own lengths, and no gradient goes
    through the lengths that are divided by. Dropout applies to the matrices' input alone.
    """

    def __init__(self, plain: Linear, low_rank: LowRank, path: str):
        self.kernel, self.bias = plain.kernel, plain.bias
        leaf: Leaf = plain.kernel.get_metadata()["leaf"]
        (inside, outside), (axis_in, axis_out) = leaf.shape, leaf.axes
        rank = low_rank.rank
        low, high = (
            Leaf((inside, rank), (axis_in, "rank")),
            Leaf((rank, outside), ("rank", axis_out)),
        )
        self.lora_a = parameter(replace(low, spread=inside**-0.5))
        self.lora_b = parameter(high)
        self.start_a = parameter(low) if low_rank.principal else None
        self.start_b = parameter(high) if low_rank.principal else None
        length = Leaf((outside,), (axis_out,), mean=1.0, decay=False)
        self.magnitude = parameter(length) if low_rank.dora else None
        self.scale, self.rate = low_rank.scale, low_rank.rate
        self.path, self.path_number = path, zlib.crc32(path.encode())

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Map `x` [..., I] to [..., O]; the block's dropout key turns dropout on."""
        own = None if key is None or not self.rate else jax.random.fold_in(key, self.path_number)
        kernel, (a, b) = self.kernel[...], self._matrices()
        bias = None if self.bias is None else self.bias[...]
        added = linear(linear(dropout(x, self.rate, own), a, None), b, None) * self.scale
        if self.magnitude is None:
            return checkpoint_name(linear(x, kernel, bias) + added, self.path)
        constants = lax.stop_gradient((kernel, a, b))
        lengths = column_lengths(*constants, self.scale)
        out = (linear(x, kernel, None) + added) * (self.magnitude[...] / lengths).astype(x.dtype)
        return checkpoint_name(out if bias is None else out + bias, self.path)

    def _matrices(self) -> tuple[jax.Array, jax.Array]:
        """Return A [I, r] and B [r, O], with the start that they are measured from beside them."""
        a, b = self.lora_a[...], self.lora_b[...]
        if self.start_a is None or self.start_b is None:
            return a, b
        return since_start(a, b, self.start_a[...], self.start_b[...])


def since_start(
    a: jax.Array, b: jax.Array, start_a: jax.Array, start_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return two matrices [I, 2r] and [2r, O] with the product A B - A0 B0."""
    return jnp.concatenate([a, start_a], 1), jnp.concatenate([b, -start_b], 0)


def column_lengths(kernel: Kernel, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Return the length of each column of W + A B scale: [O] float32."""
    return jnp.sqrt(jnp.square(summed(kernel, a, b, scale)).sum(0))


def summed(kernel: Kernel, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Return W + A B scale: [I, O] float32."""
    return dense(kernel).astype(jnp.float32) + (a @ b).astype(jnp.float32) * scale
