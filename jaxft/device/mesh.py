"""The device mesh, and where each parameter and batch lies on it.

One mesh serves every run: `data, fsdp, tensor`, data outermost. One device is a 1 x 1 x 1 mesh, not
a special case. How a parameter is cut, its logical axis names say: `jaxft.models.layers.partition`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.errors import UserError
from jaxft.models.layers.partition import partition

T = TypeVar("T")

AXES = ("data", "fsdp", "tensor")

TOLERATED_REPLICATION = 0.02


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence | None = None) -> Mesh:
    """The mesh of a run; one of the sizes may be -1 and takes what the others leave.

    Raises:
        UserError: the sizes do not multiply out to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    asked = "x".join(str(size) for size in sizes)
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // fixed, 1)
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh: {asked} (data x fsdp x tensor) does not divide {len(devices)} device(s).",
            "The product of the sizes must be the number of devices; -1 is what remains of it.",
        )
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_shardings(
    shapes: Mapping[str, Sequence[int]], axes: Mapping[str, Sequence[str | None]], mesh: Mesh
) -> dict[str, NamedSharding]:
    """Return the sharding of each parameter.

    Args:
        shapes: name -> shape.
        axes: name -> logical axis names.
        mesh: the mesh.

    Raises:
        UserError: more than 2% of the elements would be kept whole on every device although the
            mesh cuts parameters.
    """
    specs = {name: partition(shape, axes[name], mesh) for name, shape in shapes.items()}
    if mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        _check_replication(shapes, specs, mesh)
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def _check_replication(
    shapes: Mapping[str, Sequence[int]], specs: Mapping[str, PartitionSpec], mesh: Mesh
) -> None:
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    whole = [name for name, spec in specs.items() if len(shapes[name]) > 1 and not any(spec)]
    share = sum(size[name] for name in whole) / max(sum(size.values()), 1)
    if share > TOLERATED_REPLICATION:
        largest = max(whole, key=lambda name: size[name])
        raise UserError(
            f"mesh: {share:.0%} of the parameters would be replicated on every device, the largest "
            f"{largest} {tuple(shapes[largest])}, since neither fsdp={mesh.shape['fsdp']} nor "
            f"tensor={mesh.shape['tensor']} divides its dimensions.",
            "Choose sizes that divide the model's widths.",
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are cut over `data` and `fsdp`; every device of a tensor group sees the same rows."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def row_divisor(mesh: Mesh, accumulate: int) -> int:
    """Return the number that the rows of a batch must divide by."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * accumulate


def my_rows(mesh: Mesh) -> tuple[int, int]:
    """Which block of a batch's rows this process makes, and how many blocks there are.

    Processes whose devices are of one tensor group make the same rows.

    Raises:
        UserError: the rows of its devices are no such block.
    """
    groups = mesh.devices.reshape(-1, mesh.shape["tensor"])
    me = jax.process_index()
    mine = [n for n, group in enumerate(groups) if any(d.process_index == me for d in group)]
    size = len(mine)
    block = list(range(mine[0], mine[0] + size)) if mine else []
    if mine != block or not mine or len(groups) % size or mine[0] % size:
        raise UserError(
            f"mesh: {mesh.shape['data']}x{mesh.shape['fsdp']}x{mesh.shape['tensor']} leaves "
            f"process {me} rows that are not one block of the batch.",
            "mesh.tensor must divide the number of devices of a process, or be a multiple of it.",
        )
    return mine[0] // size, len(groups) // size


def place_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as its part of the global batch on the devices."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def _unchanged(array: jax.Array) -> jax.Array:
    return array


def fetch(mesh: Mesh, array: jax.Array) -> np.ndarray:
    """Copy an array whole to the host of every process.

    Args:
        mesh: the devices.
        array: in any sharding over them.
    """
    # A named function, so that arrays of one shape share a program from one call to the next.
    return np.asarray(jax.jit(_unchanged, out_shardings=replicated(mesh))(array))


def held(tree: Any) -> int:
    """Bytes of one device that the leaves of a tree take: arrays, or shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def overlaps(mesh: Mesh) -> bool:
    """Return whether two programs may be under way at once.

    Not on several CPU devices: two of which neither waits for the other can take all of XLA's
    threads there, and then wait for each other for ever.
    """
    return mesh.size == 1 or mesh.devices.flat[0].platform != "cpu"


def in_turn(mesh: Mesh, arrays: T) -> T:
    """The arrays, once they are there where programs may not overlap; else at once."""
    return arrays if overlaps(mesh) else jax.block_until_ready(arrays)
