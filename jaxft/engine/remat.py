"""Rematerialization of a train step, where the config leaves it open: as little as fits.

`train.remat: auto` saves all activations that the chip has memory for; on a chip that is not in
the table, all of them. Sizes are counted from the program, before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxft.device.chips import find_chip
from jaxft.device.mesh import held, row_divisor
from jaxft.engine.cost import residual_bytes
from jaxft.engine.initial_state import abstract_anchor, abstract_frozen, abstract_state
from jaxft.engine.setup import PhaseSetup, Setup, phase_setup
from jaxft.numbers import size

ORDER = ("none", "dots", "full")  # what is recomputed, by increasing amount
# The compiler needs memory of its own, and gathers a block's parameters where they are sharded.
USABLE = 0.85


def phase_setups(setup: Setup) -> tuple[PhaseSetup, ...]:
    """Set up each phase of a run, with its rematerialization resolved.

    Raises:
        UserError: as `setup`.
    """
    return tuple(with_remat(setup, phase_setup(setup, phase)) for phase in setup.phases)


def with_remat(setup: Setup, now: PhaseSetup) -> PhaseSetup:
    """Resolve `remat: auto` for a phase's step, and say why.

    Args:
        setup: the run.
        now: its phase.
    """
    if now.compute.remat != "auto":
        return now
    chip = find_chip(setup.mesh.devices.flat[0].device_kind)
    remat, why = "none", ""
    if chip is not None:
        room = int(USABLE * chip.device_memory) - taken(setup, now)
        devices = row_divisor(setup.mesh, 1)
        remat, why = first_that_fits(
            lambda asked: residual_bytes(setup, replace(now.compute, remat=asked)) // devices, room
        )
    return replace(now, compute=replace(now.compute, remat=remat), why=why)


def widest(phases: Sequence[PhaseSetup]) -> PhaseSetup:
    """Return the phase in which the most parameters train."""
    return max(phases, key=lambda one: len(one.table.trainable))


def phase_after(phases: Sequence[PhaseSetup], step: int) -> PhaseSetup:
    """Return the phase of the step before `step`, whose state was saved then."""
    return next((one for one in phases if step <= one.phase.stop), phases[-1])


def first_that_fits(saved_bytes: Callable[[str], int], room: int) -> tuple[str, str]:
    """Choose the least rematerialization that fits, and say why.

    Args:
        saved_bytes: remat -> bytes that a device saves for the backward pass.
        room: bytes available for them.
    """
    for name in ORDER:
        if (nbytes := saved_bytes(name)) <= room:
            break
    return name, (
        f"train.remat is {name}: the backward pass then saves {size(nbytes)} of the "
        f"{size(max(room, 0))} that parameters, gradients and moments leave on a device"
    )


def taken(setup: Setup, now: PhaseSetup) -> int:
    """Count the bytes on a device that do not depend on remat: state, gradients, frozen leaves."""
    state = abstract_state(setup, now)
    fixed = abstract_frozen(setup, now), abstract_anchor(setup, now)
    return held(state) + held(state.trainable) + held(fixed)
