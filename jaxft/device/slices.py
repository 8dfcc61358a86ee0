"""Slices of TPUs that a data-center network joins: which devices are of which, and what crosses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.errors import UserError

COUNT, NUMBER = "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"
ADDRESS = "MEGASCALE_COORDINATOR_ADDRESS"


def by_slice(devices: Sequence[Any], slices: int) -> list[Any]:
    """Order devices slice by slice, and within one as they are.

    Others than TPUs, for which slices are something else or nothing, are divided as they come.

    Args:
        devices: all of them.
        slices: how many there are.

    Raises:
        UserError: the devices are of another number of slices, or these are of unequal size.
    """
    size = -(-len(devices) // slices)
    numbers = [index // size for index in range(len(devices))]
    if all(device.platform == "tpu" for device in devices):
        numbers = [getattr(device, "slice_index", 0) or 0 for device in devices]
    present = sorted(set(numbers))
    if len(present) != slices:
        raise UserError(
            f"mesh.slices: {slices} where the devices are of {len(present)} slice(s).",
            f"Set mesh.slices to that; {COUNT}, {NUMBER} and {ADDRESS} join slices.",
        )
    sizes = {numbers.count(number) for number in present}
    if len(sizes) > 1:
        raise UserError(
            f"mesh.slices: {len(devices)} devices do not divide over {slices} slices.",
            "Slices have equally many devices.",
        )
    order = sorted(range(len(devices)), key=numbers.__getitem__)
    return [devices[index] for index in order]


def check_slices(slices: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise a UserError where what joins the slices is incomplete or says otherwise.

    Args:
        slices: `mesh.slices`.
        environment: the environment variables; nothing is checked where none is of slices.
    """
    present = [name for name in (COUNT, NUMBER, ADDRESS) if environment.get(name)]
    if not present:
        return
    if missing := [name for name in (COUNT, NUMBER, ADDRESS) if name not in present]:
        raise UserError(
            f"{present[0]} is set, and {' and '.join(missing)} is not.",
            "Slices are joined by all three, which the launcher of the slices sets.",
        )
    count, number = (environment[name] for name in (COUNT, NUMBER))
    if not count.isdecimal() or not number.isdecimal() or int(number) >= int(count):
        raise UserError(
            f"{NUMBER}={number} is no slice of {COUNT}={count}.",
            "Slices are numbered from 0.",
        )
    if int(count) != slices:
        raise UserError(
            f"mesh.slices: {slices} where {COUNT}={count}.", f"Set mesh.slices={count}."
        )
