"""`RUN/base`: parameters as they were loaded or initialised, for those no checkpoint holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jax.experimental import multihost_utils

from jaxft import files
from jaxft.errors import UserError
from jaxft.tree import natural_order

INDEX_FILE = "base.json"
FILE_BYTES = 1 << 30  # how much of the parameters a process holds on the host at a time


def write_base(
    folder: epath.PathLike, params: Mapping[str, jax.Array], names: Iterable[str] | None = None
) -> None:
    """Writes parameters as safetensors files with their SHA-256; the commit marker comes last.

    Every process has to call it; the first writes. A folder that is committed stays as it is.

    Args:
        folder: `RUN/base`.
        params: name -> array, on any mesh.
        names: which of them; None for all.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    if files.is_committed(folder):
        return
    target = epath.Path(folder)
    index: dict[str, Any] = {"files": {}, "leaves": {}}
    chosen = natural_order(params if names is None else names)
    for number, group in enumerate(_grouped(chosen, params)):
        arrays = {name: _on_host(params[name]) for name in group}
        if jax.process_index() != 0:
            continue
        name = f"base-{number:05d}.safetensors"
        with files.written_aside(target / name) as aside:
            safetensors.numpy.save_file(arrays, aside)
            index["files"][name] = files.sha256(aside)
        index["leaves"].update(dict.fromkeys(group, name))
    if jax.process_index() == 0:
        files.write_atomic(target / INDEX_FILE, json.dumps(index, indent=1))
        files.commit(target)


def read_base(
    folder: epath.PathLike, shardings: Mapping[str, jax.sharding.Sharding] | None = None
) -> dict[str, jax.Array]:
    """Reads what `write_base` wrote, each file verified, each array straight into its shards.

    Args:
        folder: `RUN/base`.
        shardings: name -> where to put it, and which to read; None reads all to the first device.

    Raises:
        UserError: it is not there, not complete, changed since, or lacks a name asked for.
    """
    source = epath.Path(folder)
    if not files.is_committed(source):
        raise UserError(f"{source} is missing or was not written to the end.")
    try:
        index = json.loads((source / INDEX_FILE).read_text())
        leaves, hashes = index["leaves"], index["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{source / INDEX_FILE} cannot be read: {error}.") from error
    if shardings is None:
        shardings = dict.fromkeys(leaves, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    missing = [name for name in shardings if name not in leaves]
    if missing:
        raise UserError(f"{source} lacks '{missing[0]}', which this run needs.")
    arrays: dict[str, jax.Array] = {}
    for file in sorted({leaves[name] for name in shardings}):
        if not (source / file).exists() or files.sha256(source / file) != hashes[file]:
            raise UserError(f"{source / file} is missing or not what was written.")
        wanted = {name: place for name, place in shardings.items() if leaves[name] == file}
        arrays.update(_read_file(source / file, wanted))
    return {name: arrays[name] for name in shardings}


def _read_file(
    file: epath.Path, wanted: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(files.local_copy(file))
        opened = stack.enter_context(safetensors.safe_open(local, framework="numpy"))
        arrays = {}
        for name, sharding in wanted.items():
            leaf = opened.get_slice(name)
            arrays[name] = jax.make_array_from_callback(
                tuple(leaf.get_shape()), sharding, leaf.__getitem__
            )
        return jax.block_until_ready(arrays)


def _grouped(names: list[str], params: Mapping[str, jax.Array]) -> list[list[str]]:
    """Names in order, cut into groups of at most `FILE_BYTES` (a larger leaf is one by itself)."""
    groups: list[list[str]] = []
    size = FILE_BYTES
    for name in names:
        if size + params[name].nbytes > FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += params[name].nbytes
    return groups


def _on_host(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_addressable:
        return np.asarray(leaf, order="C")
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True), order="C")
