"""Tensor of a weight file, not yet read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

FLOATS = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
Index = tuple[slice, ...]


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


def part_of(
    tensor: Tensor, part: tuple[int, int] | None, stacked: bool = False, axis: int = -1
) -> Tensor:
    """Return one of some equal parts along an axis, as a tensor that is read by itself.

    Args:
        tensor: the whole.
        part: which, of how many; None for the whole.
        stacked: the parts are the slices of the first axis, which they do not have.
        axis: the first one (0) or the last one (-1).
    """
    if part is None:
        return tensor
    if stacked:
        here = slice(part[0], part[0] + 1)
        return Tensor(
            tensor.file,
            tensor.shape[1:],
            tensor.dtype,
            lambda index: tensor.read((here, *index))[0],
        )
    width = tensor.shape[axis] // part[1]
    first = width * part[0]
    before, after = (tensor.shape[:axis], ()) if axis else ((), tensor.shape[1:])

    def read(index: Index) -> np.ndarray:
        start, stop, _ = index[axis].indices(width)
        own = slice(first + start, first + stop)
        return tensor.read((*index[:-1], own) if axis else (own, *index[1:]))

    return Tensor(tensor.file, (*before, width, *after), tensor.dtype, read)
