"""A run's mesh: as its config lays it out, or as what it keeps of each parameter asks for."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import jax

from jaxft.config.load import Config
from jaxft.config.optimizer import SCHEDULE_FREE
from jaxft.device.chips import find_chip
from jaxft.device.mesh import make_mesh
from jaxft.device.mesh_auto import choose_mesh, state_bytes
from jaxft.models.load import Model


def build_mesh(
    config: Config, model: Model, trained: Collection[str], devices: Sequence | None
) -> tuple[jax.sharding.Mesh, str]:
    """The mesh, and why it is so where that was left to us.

    Args:
        config: the run.
        model: described.
        trained: the parameters that train in some phase.
        devices: those to run on; all that jax sees when None.
    """
    devices, asked = jax.devices() if devices is None else list(devices), config.mesh
    if asked.layout == "given":
        return make_mesh(asked.data, asked.fsdp, asked.tensor, devices), ""
    sizes = {name: math.prod(leaf.shape) for name, leaf in model.leaves.items()}
    narrow = 4 if config.train.precision == "f32" else 2
    state = state_bytes(sizes, trained, narrow, copies_of(config))
    chip, batch = find_chip(devices[0].device_kind), config.data.batch_size
    room = None if chip is None else chip.device_memory
    chosen, why = choose_mesh(len(devices), batch, config.train.accumulate, state, room)
    return make_mesh(*chosen, devices), f"mesh is {'x'.join(map(str, chosen))}: {why}"


def copies_of(config: Config) -> int:
    """How many copies of what trains a run keeps beside: its average, and its start."""
    rules = {config.optimizer.name, *(group.optimizer for group in config.groups)}
    average = config.train.ema is not None or SCHEDULE_FREE in rules
    return int(average) + int(config.regularise.l2_sp > 0)
