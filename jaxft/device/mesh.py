"""The device mesh, and where each parameter and batch lies on it.

One mesh serves every run: `data, fsdp, expert, context, tensor`, data outermost. One device is a
mesh of one along each, not a special case. How a parameter is cut, its logical axis names say:
`jaxft.models.layers.partition`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.device.slices import by_slice
from jaxft.errors import UserError
from jaxft.models.layers.kernels import CONTEXT, HEADS, ROWS, context_of, positions_divisor
from jaxft.models.layers.partition import EXPERT, FSDP, partition

T = TypeVar("T")

AXES = ("data", "fsdp", "expert", "context", "tensor")
SHOWN = ("data", "fsdp", "tensor")  # also where there is one device along them
MEMBERS = "members"  # outermost axis of a study's mesh, where it has one: it divides no batch

TOLERATED_REPLICATION = 0.02


def make_mesh(
    data: int,
    fsdp: int,
    tensor: int,
    devices: Sequence | None = None,
    *,
    expert: int = 1,
    context: int = 1,
    slices: int = 1,
) -> Mesh:
    """The mesh of a run; one of the sizes may be -1 and takes what the others leave.

    Args:
        data, fsdp, tensor: the number of devices along each.
        devices: all of them; None for those that there are.
        expert: the number of devices over which the experts of a mixture are divided.
        context: the number of devices over which the positions of a row are divided.
        slices: the number of TPU slices, the outermost part of `data`.

    Raises:
        UserError: the sizes do not multiply out to the number of devices, or slices do not divide
            `data` or are not those of the devices.
    """
    devices = by_slice(jax.devices() if devices is None else devices, slices)
    sizes = [data, fsdp, expert, context, tensor]
    axes, asked = spelled(dict(zip(AXES, sizes, strict=True)))
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // fixed, 1)
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh: {asked} ({axes}) does not divide {len(devices)} device(s).",
            "The product of the sizes must be the number of devices; -1 is what remains of it.",
        )
    if sizes[0] % slices:
        raise UserError(
            f"mesh.slices: {slices} slices do not divide the {sizes[0]} device(s) along data.",
            "Each slice has whole parameters and an equal part of the rows.",
        )
    grid = np.asarray(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spelled(sizes: Mapping[str, int]) -> tuple[str, str]:
    """Spell the axes of a mesh, `data x fsdp x tensor`, and their sizes, `2x4x1`.

    Args:
        sizes: axis -> number of devices; `expert` and `context` are named where there are several.
    """
    named = {axis: size for axis, size in sizes.items() if axis in SHOWN or size != 1}
    return " x ".join(named), "x".join(map(str, named.values()))


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
            mesh cuts parameters; or `expert` does not divide the experts.
    """
    _check_experts(shapes, axes, mesh)
    specs = {name: partition(shape, axes[name], mesh) for name, shape in shapes.items()}
    if mesh.shape[FSDP] * mesh.shape[CONTEXT] * mesh.shape[HEADS] > 1:
        _check_replication(shapes, specs, mesh)
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def spread_over_all() -> Callable[[str, Sequence[int], Sequence[str | None]], NamedSharding]:
    """Return what cuts parameters over the devices of all processes, where no config says how."""
    mesh = make_mesh(1, -1, 1)
    return lambda name, shape, axes: NamedSharding(mesh, partition(shape, axes, mesh))


def _check_experts(
    shapes: Mapping[str, Sequence[int]], axes: Mapping[str, Sequence[str | None]], mesh: Mesh
) -> None:
    """Raise a UserError where the devices along `expert` cannot have an equal number of experts."""
    devices = mesh.shape[EXPERT]
    if devices == 1:
        return
    counts = {shapes[name][0] for name, own in axes.items() if own and own[0] == "experts"}
    if not counts:
        raise UserError(
            f"mesh.expert: this model has no experts to divide over {devices} devices.",
            "Use mesh.data or mesh.fsdp.",
        )
    odd = next((count for count in counts if count % devices), None)
    if odd is not None:
        raise UserError(
            f"mesh.expert: {odd} experts do not divide over {devices} devices.",
            "Choose a size that divides them.",
        )


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
            f"{_context_spelled(mesh)}tensor={mesh.shape['tensor']} divides its dimensions.",
            "Choose sizes that divide the model's widths.",
        )


def _context_spelled(mesh: Mesh) -> str:
    size = mesh.shape[CONTEXT]
    return f"context={size} nor " if size > 1 else ""


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows are cut over all axes but `context` and `tensor`, whose devices get the same rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def row_divisor(mesh: Mesh, accumulate: int) -> int:
    """Return the number that the rows of a batch must divide by."""
    return math.prod(mesh.shape[axis] for axis in ROWS) * accumulate


def position_divisor(mesh: Mesh) -> int:
    """Return the number that the positions of a row must divide by."""
    return positions_divisor(context_of(mesh), causal=True)


def check_batches(mesh: Mesh, rows: int, row_length: int, accumulate: int) -> None:
    """Raise a UserError where a mesh does not divide the batches of a resumed run.

    Args:
        mesh: the mesh.
        rows: of a batch.
        row_length: positions of a row.
        accumulate: micro-batches of a step.
    """
    divisor = row_divisor(mesh, accumulate)
    if rows % divisor:
        raise UserError(
            f"mesh: this run's batches have {rows} rows, which data x fsdp x expert x "
            f"train.accumulate = {divisor} does not divide.",
            "Resume with sizes whose product divides it.",
        )
    if row_length % (divisor := position_divisor(mesh)):
        raise UserError(
            f"mesh.context: this run's rows have {row_length} positions, which {divisor}, twice "
            "the devices of a row, does not divide.",
            "Resume with a mesh.context that does.",
        )


def my_rows(mesh: Mesh) -> tuple[int, int]:
    """Which block of a batch's rows this process makes, and how many blocks there are.

    Processes whose devices are of one group along `context` and `tensor` make the same rows.

    Raises:
        UserError: the rows of its devices are no such block.
    """
    devices = mesh.devices
    if MEMBERS in mesh.axis_names:
        devices = np.moveaxis(devices, 0, -1)
    alike = mesh.shape[CONTEXT] * mesh.shape[HEADS] * mesh.shape.get(MEMBERS, 1)
    groups = devices.reshape(-1, alike)
    me = jax.process_index()
    mine = [n for n, group in enumerate(groups) if any(d.process_index == me for d in group)]
    size = len(mine)
    block = list(range(mine[0], mine[0] + size)) if mine else []
    if mine != block or not mine or len(groups) % size or mine[0] % size:
        raise UserError(
            f"mesh: {spelled(mesh.shape)[1]} leaves "
            f"process {me} rows that are not one block of the batch.",
            "mesh.context x mesh.tensor must divide the number of devices of a process, or be a "
            "multiple of it.",
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
