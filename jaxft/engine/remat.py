"""What of the blocks a train step computes again, where that is left to it: as little as it must.

`train.remat: auto` keeps what the chip has room for; on a chip that the table does not know,
everything. The sizes are counted from the program, before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxft.device.chips import find_chip
from jaxft.device.mesh import held, row_divisor
from jaxft.engine.cost import kept_bytes
from jaxft.engine.initial_state import abstract_anchor, abstract_frozen, abstract_state
from jaxft.engine.setup import PhaseSetup, Setup, phase_setup
from jaxft.numbers import size

ORDER = ("none", "dots", "full")  # what is computed again: more and more
# The compiler needs room of its own, and gathers a block's parameters where they are cut.
USABLE = 0.85


def phase_setups(setup: Setup) -> tuple[PhaseSetup, ...]:
    """Each phase of a run, with what its steps compute again decided.

    Raises:
        UserError: as `setup`.
    """
    return tuple(with_remat(setup, phase_setup(setup, phase)) for phase in setup.phases)


def with_remat(setup: Setup, now: PhaseSetup) -> PhaseSetup:
    """The phase with `remat: auto` decided for its step, and why.

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
            lambda asked: kept_bytes(setup, replace(now.compute, remat=asked)) // devices, room
        )
    return replace(now, compute=replace(now.compute, remat=remat), why=why)


def widest(phases: Sequence[PhaseSetup]) -> PhaseSetup:
    """The phase in which the most parameters train."""
    return max(phases, key=lambda one: len(one.table.trainable))


def phase_after(phases: Sequence[PhaseSetup], step: int) -> PhaseSetup:
    """The phase that took the step before `step`: whose state was saved then."""
    return next((one for one in phases if step <= one.phase.stop), phases[-1])


def first_that_fits(kept: Callable[[str], int], room: int) -> tuple[str, str]:
    """The least that must be computed again, and why.

    Args:
        kept: remat -> bytes that a device then keeps for the way back.
        room: bytes that it has for them.
    """
    for name in ORDER:
        if (nbytes := kept(name)) <= room:
            break
    return name, (
        f"train.remat is {name}: the way back then keeps {size(nbytes)} of the "
        f"{size(max(room, 0))} that parameters, gradients and moments leave of a device"
    )


def taken(setup: Setup, now: PhaseSetup) -> int:
    """Bytes of a device that are taken whatever is kept: state, gradients, what does not move."""
    state = abstract_state(setup, now)
    fixed = abstract_frozen(setup, now), abstract_anchor(setup, now)
    return held(state) + held(state.trainable) + held(fixed)
