"""Weight files of a checkpoint's folder: one file, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxft.errors import UserError
from jaxft.models.weights.flax_files import pytorch_name
from jaxft.storage.json_files import read_json_object

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLAX = ("flax_model.msgpack", "flax_model.msgpack.index.json")
# The stem of the names of a part of a pipeline of `diffusers`, and of a model of `transformers`.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
OF_DIFFUSERS = (f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.safetensors.index.json")
# The first that is there is read.
WEIGHT_FILES = (WEIGHTS, INDEX, *OF_DIFFUSERS, *PICKLED, *FLAX)
# Index of shards -> what the names of its shards end in.
INDEXES = {
    INDEX: "safetensors",
    OF_DIFFUSERS[1]: "safetensors",
    PICKLED[1]: "bin",
    FLAX[1]: "msgpack",
}
# Fetched only where a repository has nothing better.
PICKLED_FILES = ("pytorch_model*.bin", PICKLED[1])
FLAX_FILES = ("flax_model*.msgpack", FLAX[1])


def weight_files(folder: Path, weight_map: Mapping[str, Path]) -> tuple[Path, ...]:
    """Return the files that hold a checkpoint's weights, in order of name.

    Args:
        folder: the checkpoint's.
        weight_map: what `read_weight_map` returns of it.

    Raises:
        UserError: there are none.
    """
    return tuple(sorted(set(weight_map.values()))) or (folder / _weights(folder),)


def read_weight_map(folder: Path) -> dict[str, Path]:
    """Map each tensor, as PyTorch names it, to its shard; empty if the weights are not sharded.

    Raises:
        UserError: there are no weights, or an index cannot be read or names a file that is not
            beside it.
    """
    name = _weights(folder)
    return _read_index(folder / name) if name in INDEXES else {}


def _weights(folder: Path) -> str:
    """Return the name of the weight file, or of the index of its shards."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return name
    raise UserError(
        f"{folder} has no weights: no {WEIGHTS}, no {PICKLED[0]} and no {FLAX[0]}, "
        "whole or in shards."
    )


def _read_index(index: Path) -> dict[str, Path]:
    """Read an index of shards, which must lie beside it: tensor, as PyTorch names it -> shard."""
    weight_map, ending = read_json_object(index).get("weight_map"), INDEXES[index.name]
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is not an index of {ending} files.")
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not name.endswith(f".{ending}"):
            raise UserError(f"{index} names '{name}', which is not a {ending} file beside it.")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names '{name}', which is missing.")
    flax = index.name in FLAX
    return {
        pytorch_name(tensor.split("/")) if flax else tensor: index.parent / name
        for tensor, name in weight_map.items()
    }
