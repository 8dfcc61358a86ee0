"""Tensor of a weight file, not yet read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

FLOATS = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
Index = tuple[slice, ...]


class Span(NamedTuple):
    """Part of a tensor along one of its axes.

    Attributes:
        first, width: where it begins, and how long it is.
        whole: how long the tensor is.
    """

    first: int
    width: int
    whole: int


@dataclass(frozen=True)
class Tensor:
    """One tensor of a weight file, not yet read.

    Args:
        file: the file it is in.
        shape: its shape there.
        dtype: its type there, as safetensors spells it (`F32`).
        read: reads a part: a tuple of slices, one per dimension, -> numpy array, which may be a
            view of the file.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], np.ndarray]

    def whole(self) -> np.ndarray:
        """Read all of it."""
        return self.read((slice(None),) * len(self.shape))


def slice_of(tensor: Tensor, number: int) -> Tensor:
    """Return one slice of a tensor's first axis, without that axis, read by itself."""
    here = slice(number, number + 1)
    return Tensor(
        tensor.file, tensor.shape[1:], tensor.dtype, lambda index: tensor.read((here, *index))[0]
    )


def part_of(tensor: Tensor, span: Span, axis: int = -1) -> Tensor:
    """Return a part of a tensor, read by itself.

    Args:
        tensor: the whole.
        span: which part.
        axis: along the first axis (0) or the last one (-1).
    """
    first, width, _ = span
    before, after = (tensor.shape[:axis], ()) if axis else ((), tensor.shape[1:])

    def read(index: Index) -> np.ndarray:
        start, stop, _ = index[axis].indices(width)
        own = slice(first + start, first + stop)
        return tensor.read((*index[:-1], own) if axis else (own, *index[1:]))

    return Tensor(tensor.file, (*before, width, *after), tensor.dtype, read)
