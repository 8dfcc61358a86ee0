"""Weight files as named tensors: safetensors, PyTorch's `.bin`, or Flax's `.msgpack`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxft.errors import UserError
from jaxft.models.weights.flax_files import open_flax
from jaxft.models.weights.tensor import FLOATS, Index, Tensor, with_counts
from jaxft.numbers import size


def open_tensors(
    files: Sequence[Path], indexed: Mapping[str, Path] | None = None
) -> dict[str, Tensor]:
    """Return every tensor of the weight files, by the name it has there; only headers are read.

    Args:
        files: the files.
        indexed: tensor -> its file, from an index of shards.

    Raises:
        UserError: a file is cut short or is not safetensors, a name comes twice, an indexed
            tensor is not there, or the file is a `.bin` and torch is not installed.
    """
    opened: dict[str, Tensor] = {}
    for path in files:
        tensors = READERS[path.suffix](path)
        if twice := opened.keys() & tensors.keys():
            raise UserError(f"{path} holds '{min(twice)}', which another weight file holds too.")
        opened |= tensors
    for name, path in (indexed or {}).items():
        if name not in opened or opened[name].file != path:
            raise UserError(f"{path} lacks the tensor '{name}', which the index says it holds.")
    return with_counts(opened)


class _OpenFile:
    """A file that stays open, and so as it is, for as long as a tensor of it may be read.

    A part is mapped anew each time: its pages count as this process's only while they are read,
    and it is not copied before it is on its way to a device.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")

    def __del__(self) -> None:
        self._file.close()

    def bytes(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        return self._file.read(count)

    def array(
        self, dtype: np.dtype, offset: int, shape: tuple[int, ...], index: Index
    ) -> np.ndarray:
        """Return the part `index` of the array at `offset`, as a view of the file."""
        if index:  # only the rows that are asked for
            start, stop, _ = index[0].indices(shape[0])
            offset += start * math.prod(shape[1:]) * dtype.itemsize
            shape, index = (stop - start, *shape[1:]), (slice(None), *index[1:])
        if hasattr(os, "posix_fadvise"):  # read ahead: a page at a time, a disk is slow
            length = math.prod(shape) * dtype.itemsize
            os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
        mapped = np.memmap(self._file, dtype, mode="r", offset=offset, shape=shape)
        return np.asarray(mapped[index])


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that the library finds whole."""
    try:
        with safe_open(path, framework="np"):
            pass  # opening checks the header, and that the file is as long as it says
        file = _OpenFile(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read: it is cut short or is not a safetensors file ({error}).",
            "Fetch it again.",
        ) from None
    length = int.from_bytes(file.bytes(8), "little")
    header = json.loads(file.bytes(length))

    def reader(about: Mapping[str, Any]) -> Callable[[Index], np.ndarray]:
        shape, offset = tuple(about["shape"]), 8 + length + about["data_offsets"][0]
        # Of what is no float only the counts of batch norms are read.
        dtype = FLOATS.get(about["dtype"], np.dtype("int64" if not shape else "uint8"))
        return lambda index: file.array(dtype, offset, shape, index)

    return {
        name: Tensor(path, tuple(about["shape"]), about["dtype"], reader(about))
        for name, about in header.items()
        if name != "__metadata__"
    }


def _check_zip(path: Path) -> None:
    """Raise a UserError where a `.bin` is a zip that unpacks to more than torch ever writes.

    torch compresses nothing; older files are no zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # no zip, or one that torch refuses, with its own error
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} has {size(path.stat().st_size)} and unpacks to {size(unpacked)}; torch writes "
            "no such file.",
            "Save the model's state_dict with torch.save, or better as safetensors.",
        )


def _open_pickled(path: Path) -> dict[str, Tensor]:
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            f"{path} is a pickled checkpoint, which takes torch to read safely.",
            "Install torch, or save the checkpoint as safetensors.",
        )
    _check_zip(path)
    import torch  # here, because it takes seconds and only a .bin needs it

    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
    }
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise UserError(
            f"{path} cannot be read as weights only ({type(error).__name__}): it is damaged, or "
            "holds objects that are no tensors, which may run code.",
            "Save the model's state_dict, or better as safetensors.",
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(
            f"{path} holds something else than named tensors.", "Save the model's state_dict."
        )
    state = {name: value.detach() for name, value in state.items()}  # one may be a Parameter

    def reader(value: Any) -> Callable[[Index], np.ndarray]:
        # numpy has no bfloat16 of its own, so torch hands its bits over as integers.
        if value.dtype == torch.bfloat16:
            return lambda index: value[index].view(torch.int16).numpy().view(FLOATS["BF16"])
        return lambda index: value[index].numpy()

    return {
        name: Tensor(
            path, tuple(value.shape), names.get(value.dtype, str(value.dtype)), reader(value)
        )
        for name, value in state.items()
    }


READERS = {".safetensors": _open_safetensors, ".bin": _open_pickled, ".msgpack": open_flax}
