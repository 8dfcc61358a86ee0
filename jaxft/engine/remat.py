"""What of the blocks a train step computes again, where that is left to it: as little as it must.

`train.remat: auto` keeps what the chip has room for; on a chip that the table does not know,
everything. The sizes are counted from the program, before anything is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jaxft.device.chips import find_chip
from jaxft.device.mesh import held, row_divisor
from jaxft.engine.cost import kept_bytes
from jaxft.engine.initial_state import abstract_frozen, abstract_origin, abstract_state
from jaxft.engine.setup import Build
from jaxft.numbers import size

ORDER = ("none", "dots", "full")  # what is computed again: more and more
# The compiler needs room of its own, and gathers a block's parameters where they are cut.
USABLE = 0.85


def with_remat(built: Build) -> Build:
    """The run with `remat: auto` decided for the phase that it is in, and why in `built.why`."""
    remat, why = choose_remat(built)
    decided = replace(built.compute, remat=remat)
    return replace(built, compute=decided, why=(*built.why, why) if why else built.why)


def choose_remat(built: Build) -> tuple[str, str]:
    """What a run's step computes again, and why; no reason where the config says it.

    Args:
        built: the run in the phase whose step it is.
    """
    asked = built.compute.remat
    if asked != "auto":
        return asked, ""
    chip = find_chip(built.mesh.devices.flat[0].device_kind)
    if chip is None:
        return "none", ""
    room = int(USABLE * chip.device_memory) - taken(built)
    devices = row_divisor(built.mesh, 1)

    def kept(remat: str) -> int:
        return kept_bytes(replace(built, compute=replace(built.compute, remat=remat))) // devices

    return first_that_fits(kept, room)


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


def taken(built: Build) -> int:
    """Bytes of a device that are taken whatever is kept: state, gradients, what does not move."""
    state = abstract_state(built)
    return (
        held(state) + held(state.trainable) + held((abstract_frozen(built), abstract_origin(built)))
    )
