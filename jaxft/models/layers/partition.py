"""Partitioning of parameters over a mesh, and their gathering where they are used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.models.layers.kernels import CONTEXT, context_of
from jaxft.models.layers.modules import Leaf
from jaxft.models.quantized import Quantized

FSDP, EXPERT = "fsdp", "expert"
# Parameters are cut over these together: the devices of a row sum gradients as those of others do.
SHARDS = (FSDP, CONTEXT)
SHARE = "1 in "  # the start of the name of what `own_share` names
# Mesh axes a logical axis may take, in order of preference; `fsdp` stands for `SHARDS`. A dimension
# that an axis does not divide goes on to the next: 30,522 words do not split in 4. But `tensor` is
# left to a dimension that prefers it: else a head's scores would be sums over devices, all of them
# on each, where there is no `fsdp`.
RULES: Mapping[str, tuple[str, ...]] = {
    "vocab": ("tensor", "fsdp"),
    "embed": ("fsdp", "tensor"),
    "heads": ("tensor", "fsdp"),
    "mlp": ("tensor", "fsdp"),
    "experts": ("expert",),
    "expert_embed": ("fsdp",),  # `tensor` divides the inside of an expert
}


def partition(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
    """Return the partitioning of one parameter over a mesh.

    Vectors stay whole over `fsdp`: gathering a few hundred numbers costs more than storing them.

    Args:
        shape: the parameter's shape.
        axes: its logical axis names, one a dimension.
        mesh: the devices.
    """
    used_axes: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        choice: tuple[str, ...] = ()
        for candidate in RULES.get(axis or "", ()):
            whole = candidate == FSDP and len(shape) < 2
            taken = candidate in used_axes or _preferred(candidate, axis, shape, axes, mesh)
            choice = () if whole or taken else _cut(size, candidate, mesh)
            if choice:
                used_axes.add(candidate)
                break
        spec.append(choice[0] if len(choice) == 1 else choice or None)
    return PartitionSpec(*spec)


def _preferred(
    candidate: str,
    axis: str | None,
    shape: Sequence[int],
    axes: Sequence[str | None],
    mesh: Mesh,
) -> bool:
    """Return whether another dimension has `tensor` as its first choice, and can be cut over it."""
    if candidate != "tensor" or RULES[axis or ""][0] == candidate:
        return False
    rules = zip(shape, (RULES.get(one or "", ("",))[0] for one in axes), strict=True)
    return any(first == candidate and _cut(size, candidate, mesh) for size, first in rules)


def _cut(size: int, candidate: str, mesh: Mesh) -> tuple[str, ...]:
    """Return the mesh axes that a dimension is cut over; none where they do not divide it."""
    axes = SHARDS if candidate == FSDP else (candidate,)
    longer = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    options = dict.fromkeys((longer, *((axis,) for axis in longer)))
    fitting = (own for own in options if size % math.prod(mesh.shape[axis] for axis in own) == 0)
    return next(fitting, ())


def over_shards(cut: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the axes of `SHARDS` that an entry of a parameter's partitioning names."""
    named = (cut,) if isinstance(cut, str) else cut or ()
    return tuple(axis for axis in named if axis in SHARDS)


def own_share(ways: int) -> AbstractContextManager:
    """Name matmuls whose rows are those of `ways` devices, one in so many of them its own.

    Which rows those are depends on the data, so shapes do not say what is computed.
    """
    return jax.named_scope(f"{SHARE}{ways}") if ways > 1 else nullcontext()


def shared_by(name: str) -> int:
    """Return the number of devices in a program's name by `own_share`; 1 in any other."""
    matched = re.search(rf"{SHARE}(\d+)", name)
    return int(matched[1]) if matched else 1


def gathered(
    values: Mapping[str, jax.Array], leaves: Mapping[str, Leaf], mesh: Mesh | None
) -> Mapping[str, jax.Array]:
    """Constrain the parameters of a bound part to be whole over `fsdp`.

    On a mesh with three or more axes longer than 1, XLA does not gather a kernel that is larger
    than the activations: it moves rows instead, some of them to the wrong devices, so that `x @ w`
    is wrong (jaxlib 0.10.2: x over (data, fsdp), w over (tensor, fsdp)). This makes it gather.
    Meshes with `context` gather too. Others are left to the partitioner, but for quantized
    kernels: their codes are gathered, and not the numbers that they stand for. Experts are
    gathered where they are run.

    Args:
        values: path -> array.
        leaves: path -> what is known of it.
        mesh: the devices; None where they are not known.
    """
    if mesh is None:
        return values
    whole = sum(size > 1 for size in mesh.shape.values()) >= 3 or context_of(mesh) > 1
    return {
        path: jax.tree.map(partial(_whole_over_fsdp, leaf=leaves[path], mesh=mesh), value)
        if isinstance(value, Quantized) or (whole and "experts" not in leaves[path].axes)
        else value
        for path, value in values.items()
    }


def _whole_over_fsdp(value: jax.Array, leaf: Leaf, mesh: Mesh) -> jax.Array:
    own = partition(value.shape, leaf.axes, mesh)
    whole = PartitionSpec(*(None if over_shards(cut) else cut for cut in own))
    return _moved(value, NamedSharding(mesh, whole), NamedSharding(mesh, own))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(value: jax.Array, to: NamedSharding, back: NamedSharding) -> jax.Array:
    """Constrain an array's sharding, and its gradient's to another.

    A gradient that had to be whole too would be summed up whole on every device.
    """
    del back
    return jax.lax.with_sharding_constraint(value, to)


_moved.defvjp(
    lambda value, to, back: (_moved(value, to, back), None),
    lambda to, back, _, gradient: (jax.lax.with_sharding_constraint(gradient, back),),
)
