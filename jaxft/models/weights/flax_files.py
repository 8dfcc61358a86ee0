"""Weights that the Flax classes of `transformers` saved, under the names of their PyTorch twins.

`transformers` had Flax models up to version 4. `FlaxPreTrainedModel.save_pretrained` wrote
`flax_model.msgpack`, or shards of it with an index, in the format of `flax.serialization`. Its
modules have the names of the PyTorch ones; what differs is how Flax calls and orders the arrays of
a layer: a `kernel` is stored (in, out) and a convolution's (height, width, in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore

from jaxft.errors import UserError
from jaxft.models.weights.tensor import FLOATS, Index, Tensor

# Flax's name of an array -> PyTorch's.
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Number of axes of a kernel -> their order in PyTorch: linear, convolution in 1 and 2 dimensions.
KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}


def open_flax(path: Path) -> dict[str, Tensor]:
    """Read a `.msgpack` file of Flax weights, whole.

    Args:
        path: `flax_model.msgpack` or one of its shards.

    Returns:
        The tensors by PyTorch's names, with PyTorch's order of axes.

    Raises:
        UserError: it is cut short or damaged, or holds something else than nested named arrays.
    """
    try:
        content = msgpack_restore(path.read_bytes())
    except Exception as error:  # msgpack, numpy and Flax raise whatever the bytes make them
        raise UserError(
            f"{path} cannot be read: it is cut short or is not Flax weights "
            f"({type(error).__name__}: {error}).",
            "Fetch it again.",
        ) from None
    if isinstance(content, dict) and set(content) == {"params"}:
        content = content["params"]  # a whole variable collection was saved
    tensors: dict[str, Tensor] = {}
    for names, value in _arrays(content, (), path):
        name, array = _as_pytorch(names, value)
        if name in tensors:
            raise UserError(f"{path} holds the tensor '{name}' twice.")
        tensors[name] = Tensor(path, array.shape, _dtype_name(array), _reader(array))
    return tensors


def pytorch_name(names: Sequence[str]) -> str:
    """Return the PyTorch name of an array of a Flax model: its modules' names, then the layer's."""
    *modules, leaf = names
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _arrays(
    content: Any, names: tuple[str, ...], path: Path
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield every array of a nested mapping with the names that lead to it."""
    if isinstance(content, np.ndarray | np.generic) and names:
        yield names, np.asarray(content)
        return
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UserError(
            f"{path} holds something else than nested named arrays (at '{'/'.join(names)}').",
            "Save the params of the model with FlaxPreTrainedModel.save_pretrained.",
        )
    for name, inner in content.items():
        yield from _arrays(inner, (*names, name), path)


def _as_pytorch(names: tuple[str, ...], value: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the PyTorch name of an array, and a view of it with PyTorch's order of axes."""
    axes = KERNEL_AXES.get(value.ndim) if names[-1] == "kernel" else None
    return pytorch_name(names), value if axes is None else value.transpose(axes)


def _dtype_name(array: np.ndarray) -> str:
    """Return an array's type as safetensors spells it; what is not a float by numpy's name."""
    return next((name for name, dtype in FLOATS.items() if dtype == array.dtype), str(array.dtype))


def _reader(array: np.ndarray) -> Callable[[Index], np.ndarray]:
    return lambda index: array[index]
