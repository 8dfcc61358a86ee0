"""Weights in MXFP4, as gpt-oss has its experts: read as bfloat16, which holds each of them exactly.

A number has 4 bits, two of them a byte, the lower first; 32 numbers share an exponent.

Source: OCP Microscaling Formats (MX) 1.0, https://arxiv.org/abs/2310.10537; the layout is that of
`transformers`' `integrations/mxfp4.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from jaxft.errors import UserError
from jaxft.models.weights.tensor import Index, Tensor

BLOCKS, SCALES = "_blocks", "_scales"  # the ends of the names of a tensor's two parts
BYTES = 16  # of 32 numbers
HALF = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
VALUES = np.concatenate([HALF, -HALF])  # of each 4 bits: the first is the sign
BIAS = 127  # of the exponent


def with_numbers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a tensor of numbers (E, in, out) in the place of blocks and scales of (E, out, in).

    Raises:
        UserError: one of the two is missing, or they do not belong together.
    """
    read = dict(tensors)
    for name in tensors:
        if name.endswith(BLOCKS):
            whole = name.removesuffix(BLOCKS)
            scales = read.pop(whole + SCALES, None)
            if scales is None:
                raise UserError(f"The checkpoint lacks the tensor '{whole + SCALES}'.")
            read[whole] = _numbers(name, read.pop(name), scales)
    return read


def _numbers(name: str, blocks: Tensor, scales: Tensor) -> Tensor:
    fits = blocks.dtype == scales.dtype == "U8" and blocks.shape == (*scales.shape, BYTES)
    if not fits or len(scales.shape) != 3:
        raise UserError(
            f"{blocks.file}: '{name}' {list(blocks.shape)} {blocks.dtype} and its scales "
            f"{list(scales.shape)} {scales.dtype} are no MXFP4."
        )

    def read(index: Index) -> np.ndarray:
        experts, inside, outside = index or (slice(None),) * 3
        first, stop, _ = inside.indices(count)
        groups = slice(first // width, math.ceil(stop / width))  # whole ones, of 32 numbers
        part = blocks.read((experts, outside, groups, slice(None)))
        numbers = decode(part, scales.read((experts, outside, groups)))
        own = slice(first - groups.start * width, stop - groups.start * width)
        return np.swapaxes(numbers[..., own], 1, 2)

    width = 2 * BYTES
    experts, outside, groups = scales.shape
    count = groups * width
    return Tensor(blocks.file, (experts, count, outside), "BF16", read)


def decode(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return numbers [..., 32 G] in bfloat16 of blocks [..., G, 16] and scales [..., G], bytes."""
    bits = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], -1)
    exponents = scales.astype(np.int32) - BIAS
    numbers = np.ldexp(VALUES[bits], exponents[..., None])
    return numbers.reshape(*scales.shape[:-1], -1).astype(ml_dtypes.bfloat16)
