"""Kernels of frozen linear maps in 4 or 8 bits, in blocks of a column's rows (QLoRA's storage).

A kernel [I, O] is PyTorch's weight [O, I] transposed, so that a block of 64 rows of a column is the
block of 64 neighbours in memory that bitsandbytes quantizes. `linear` makes the numbers of a
kernel where it multiplies with them, and again in the backward pass: saved is what is stored.

Source: Dettmers et al. (2023), https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from itertools import pairwise
from types import EllipsisType

import jax
import jax.numpy as jnp

NF4, INT8 = "nf4", "int8"
BLOCK, SMALLEST = 64, 16
LARGEST = 127
# Quantiles of the normal distribution, scaled to [-1, 1], with an exact 0.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """Kernel [..., I, O] in few bits.

    Attributes:
        codes: `[..., I / 2, O]` uint8, two levels a byte (nf4), or `[..., I, O]` int8.
        scales: `[..., I / block, O]` float32: the largest of each block (nf4), or that / 127.
        kind: nf4 or int8.
        dtype: the type of the numbers that it stands for.
    """

    codes: jax.Array
    scales: jax.Array
    kind: str = field(metadata={"static": True})
    dtype: str = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers that it stands for."""
        *lead, rows, columns = self.codes.shape
        return (*lead, 2 * rows if self.kind == NF4 else rows, columns)

    def astype(self, dtype: str | jnp.dtype) -> Quantized:
        """Return the same codes, which stand for numbers of another type."""
        return dataclasses.replace(self, dtype=str(jnp.dtype(dtype)))

    def __getitem__(self, index: EllipsisType) -> Quantized:
        """Return itself for `kernel[...]`, with which a module reads its parameter."""
        return self

    def dense(self) -> jax.Array:
        """Compute the numbers that it stands for: [..., I, O]."""
        *lead, blocks, columns = self.scales.shape
        codes = self.codes.reshape(*lead, blocks, -1, columns)
        if self.kind == NF4:
            halves = _levels(codes & 15), _levels(codes >> 4)
            numbers = jnp.concatenate(halves, axis=-2)
        else:
            numbers = codes.astype(jnp.float32)
        numbers = numbers * self.scales[..., None, :]
        return numbers.reshape(self.shape).astype(self.dtype)


Kernel = jax.Array | Quantized


def block_rows(rows: int) -> int:
    """Return how many of a column's rows share a scale: 64, or the largest power of 2 below."""
    return math.gcd(rows, BLOCK)


def can_store(shape: tuple[int, ...]) -> bool:
    """Return whether a kernel of a shape is stored so: in smaller blocks it would save nothing."""
    return len(shape) == 2 and block_rows(shape[0]) >= SMALLEST


def quantize(kernel: jax.Array, kind: str) -> Quantized:
    """Round a kernel [I, O] to the nearest levels of its blocks.

    Args:
        kernel: finite numbers.
        kind: nf4 or int8.
    """
    rows, columns = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(-1, block_rows(rows), columns)
    largest = jnp.abs(blocks).max(1)  # [I / block, O]
    scales = largest if kind == NF4 else largest / LARGEST
    scaled = blocks / jnp.where(scales > 0, scales, 1.0)[:, None]
    codes = _nearest(scaled) if kind == NF4 else jnp.round(scaled).astype(jnp.int8)
    return Quantized(codes.reshape(-1, columns), scales, kind, str(kernel.dtype))


def dense(kernel: Kernel) -> jax.Array:
    """Return a kernel's numbers, however it is stored."""
    return kernel.dense() if isinstance(kernel, Quantized) else kernel


def _nearest(scaled: jax.Array) -> jax.Array:
    """Return the nearest of `LEVELS` in 4 bits: [N, block, O] -> two a byte, [N, block / 2, O]."""
    between = [(low + high) / 2 for low, high in pairwise(LEVELS)]
    codes = sum((scaled > bound).astype(jnp.uint8) for bound in between)
    low, high = jnp.split(jnp.asarray(codes), 2, axis=1)
    return low | (high << 4)


def _levels(codes: jax.Array) -> jax.Array:
    """Look up 4-bit codes by 15 choices, which fuse; a TPU gathers slowly."""
    numbers: list[jax.Array] = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        numbers = [
            jnp.where(odd, high, low) for low, high in zip(numbers[::2], numbers[1::2], strict=True)
        ]
    return numbers[0]
