"""Memory that a study's members need, known before anything is compiled; chunks that fit."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxft.engine.initial_state import abstract_state
from jaxft.engine.remat import residual_bytes
from jaxft.engine.setup import Setup, phase_setup
from jaxft.errors import UserError
from jaxft.numbers import size
from jaxft.studies.program.step import takes_turns

USABLE = 0.9  # share of the free memory that a study may take


@dataclass(frozen=True)
class Need:
    """Memory that a bucket needs, in bytes.

    Attributes:
        shared: the loaded parameters, once for all members.
        state: one member's trained parameters, moments and average.
        working: one member's gradients, and activations saved for the backward pass.
        turns: members run one after another, so that only one needs `working`.
    """

    shared: int
    state: int
    working: int
    turns: bool

    def of(self, members: int) -> int:
        """Return the bytes for a number of members in one program."""
        return self.shared + members * self.state + self.working * (1 if self.turns else members)

    def most(self, available: int) -> int:
        """Return the largest number of members that fit into the available bytes."""
        each = self.state + (0 if self.turns else self.working)
        rest = available - self.shared - (self.working if self.turns else 0)
        return max(int(rest // max(each, 1)), 0)


def need_of(setup: Setup) -> Need:
    """Compute the memory that the members of a bucket need.

    Args:
        setup: any member's run; its widest phase counts.
    """
    widest = max(setup.phases, key=lambda phase: len(phase.table.trainable))
    chosen = phase_setup(setup, widest)
    state = abstract_state(setup, chosen)
    return Need(
        shared=_bytes(setup.model.params),
        state=_bytes((state.trainable, state.opt_state, state.average, state.previously_trained)),
        working=residual_bytes(setup, chosen.compute) + _bytes(state.trainable),
        turns=takes_turns(setup.compute),
    )


def available_bytes(mesh: jax.sharding.Mesh) -> int:
    """Return the free memory of a device of this process, or of the host where that is a CPU."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def chunk_sizes(need: Need, members: int, available: int) -> list[int]:
    """Divide members into chunks that fit into memory, as evenly as possible.

    Args:
        need: of the bucket.
        members: their number.
        available: bytes.

    Raises:
        UserError: not even one member fits.
    """
    most = need.most(int(available * USABLE))
    if most < 1:
        raise UserError(
            f"A study's member needs {size(need.of(1))} of memory and {size(available)} are free: "
            f"{size(need.shared)} for the checkpoint, {size(need.state)} for what trains and its "
            f"moments, {size(need.working)} for activations and gradients.",
            "Freeze more, lower data.batch_size, or set train.remat to full.",
        )
    chunks = -(-members // most)
    return [len(part) for part in np.array_split(np.arange(members), chunks)]


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
