"""Tensor of a weight file, not yet read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxft.errors import UserError

EACH = "{e}"  # in a tensor's name, the number of an expert: each has one, and all are a parameter
FLOATS = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
ROWS = 4096  # that are compared at a time
# Of a batch norm, the mean, and the count beside it, which no computation reads.
MEAN, COUNT = ".running_mean", ".num_batches_tracked"
Index = tuple[slice, ...]


class Span(NamedTuple):
    """Part of a tensor along one of its axes.

    Attributes:
        first, width: where it begins, and how long it is.
        whole: how long the tensor is.
        heads: into how many equal runs the tensor is cut, each of which has its share of every
            part.
    """

    first: int
    width: int
    whole: int
    heads: int = 1


@dataclass(frozen=True)
class Tensor:
    """One tensor of a weight file, not yet read.

    Args:
        file: the file it is in.
        shape: its shape there.
        dtype: its type there, as safetensors spells it (`F32`).
        read: reads a part: a tuple of slices, one per dimension, -> numpy array, which may be a
            view of the file.
        count: of a batch norm's mean, the tensor with the number of batches it is of.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], np.ndarray]
    count: Tensor | None = None

    def whole(self) -> np.ndarray:
        """Read all of it."""
        return self.read((slice(None),) * len(self.shape))

    def equals(self, other: Tensor) -> bool:
        """Return whether another tensor has the same values; read up to the first that differ."""
        if self.shape != other.shape:
            return False
        rest = (slice(None),) * (len(self.shape) - 1)
        parts = [(slice(row, row + ROWS), *rest) for row in range(0, self.shape[0], ROWS)]
        return all(np.array_equal(self.read(part), other.read(part)) for part in parts)


def with_counts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the count of each batch norm beside the tensor of its mean."""
    counts = {n: t for n, t in tensors.items() if n.endswith(COUNT) and count_mean(n) in tensors}
    whole = {name: tensor for name, tensor in tensors.items() if name not in counts}
    means = {count_mean(name): count for name, count in counts.items()}
    return whole | {name: replace(whole[name], count=count) for name, count in means.items()}


def count_mean(name: str) -> str:
    """Return the name of the mean that the count of a batch norm is beside."""
    return name.removesuffix(COUNT) + MEAN


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
    first, width, _, heads = span
    before, after = (tensor.shape[:axis], ()) if axis else ((), tensor.shape[1:])

    def at(index: Index, own: slice) -> Index:
        return (*index[:-1], own) if axis else (own, *index[1:])

    def read(index: Index) -> np.ndarray:
        start, stop, _ = index[axis].indices(width)
        return tensor.read(at(index, slice(first + start, first + stop)))

    def read_of_heads(index: Index) -> np.ndarray:
        apart = np.moveaxis(tensor.read(at(index, slice(None))), axis, 0)
        apart = apart.reshape(heads, -1, *apart.shape[1:])
        own = apart[:, first // heads : (first + width) // heads].reshape(width, *apart.shape[2:])
        return np.moveaxis(own[index[axis]], 0, axis)

    own_read = read if heads == 1 else read_of_heads
    return Tensor(tensor.file, (*before, width, *after), tensor.dtype, own_read)


def joined(parts: Sequence[np.ndarray], axis: int, heads: int = 1) -> np.ndarray:
    """Put the parts of a tensor together along an axis, in reverse of `part_of`.

    Args:
        parts: all of them, in order.
        axis: the first (0) or the last one (-1).
        heads: as `Span` has it.
    """
    if heads == 1:
        return np.concatenate(parts, axis) if len(parts) > 1 else parts[0]
    first = [np.moveaxis(part, axis, 0) for part in parts]
    runs = np.concatenate([one.reshape(heads, -1, *one.shape[1:]) for one in first], axis=1)
    whole = np.moveaxis(runs.reshape(-1, *runs.shape[2:]), 0, axis)
    return np.ascontiguousarray(whole)  # safetensors writes what is in memory, in that order


def of_expert(name: str, number: int) -> str:
    """Return the name of one expert's tensor."""
    return name.replace(EACH, str(number))


def with_stacks(
    tensors: Mapping[str, Tensor], counts: Mapping[str, int], canonical: Callable[[str], str]
) -> dict[str, Tensor]:
    """Put one tensor (out, E, in) in the place of those of E experts, (out, in) each.

    Args:
        tensors: the checkpoint's.
        counts: the name of an expert's tensor, with `EACH` in it -> E.
        canonical: a name as found in a file -> as `counts` spells it.

    Raises:
        UserError: an expert's tensor is missing, or unlike the others'.
    """
    stored, joined = {canonical(name): name for name in tensors}, dict(tensors)
    for name, count in counts.items():
        if of_expert(name, 0) in stored:
            parts = [_part_of_stack(stored, name, number) for number in range(count)]
            joined[name] = _stack_of([joined.pop(part) for part in parts], name)
    return joined


def _part_of_stack(stored: Mapping[str, str], name: str, number: int) -> str:
    own = of_expert(name, number)
    if own not in stored:
        raise UserError(f"The checkpoint lacks the tensor '{own}'.")
    return stored[own]


def _stack_of(parts: Sequence[Tensor], name: str) -> Tensor:
    """Return a tensor that reads several equal ones side by side along a second axis."""
    first = parts[0]
    for number, part in enumerate(parts):
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise UserError(
                f"{part.file}: '{of_expert(name, number)}' is {list(part.shape)} {part.dtype}, and "
                f"that of expert 0 is {list(first.shape)} {first.dtype}."
            )

    def read(index: Index) -> np.ndarray:
        outside, experts, *inside = index
        return np.stack([part.read((outside, *inside)) for part in parts[experts]], axis=1)

    shape = (first.shape[0], len(parts), *first.shape[1:])
    return Tensor(first.file, shape, first.dtype, read)
