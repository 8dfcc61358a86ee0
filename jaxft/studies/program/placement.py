"""Members side by side: a mesh whose outermost axis, `members`, divides them over the devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxft.config.load import Config
from jaxft.device.mesh import MEMBERS, row_divisor
from jaxft.engine.setup import Setup, build
from jaxft.errors import UserError


def build_spread(config: Config, groups: int, devices: Sequence | None = None) -> Setup:
    """Build the setup of a member on its share of the devices, and lay it over all of them.

    Args:
        config: of a member; its mesh is that of one share.
        groups: the number of shares.
        devices: None for all.

    Raises:
        UserError: see `build`; or the devices do not divide into the shares.
    """
    if groups == 1:
        return build(config, devices=devices)
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % groups:
        raise UserError(
            f"--mesh-members {groups} does not divide {len(devices)} devices.",
            "Choose a number that does.",
        )
    setup = build(config, devices=devices[: len(devices) // groups])
    shape = groups, *setup.mesh.devices.shape
    return _on(setup, Mesh(np.reshape(devices, shape), (MEMBERS, *setup.mesh.axis_names)))


def member_groups(mesh: Mesh) -> int:
    """Count the shares of the devices that train members side by side."""
    return int(mesh.shape.get(MEMBERS, 1))


def respread(setup: Setup, members: int) -> Setup:
    """Give the devices of members that stopped to the rest, as replicas of each share.

    Args:
        setup: of a member.
        members: how many are left.

    Returns:
        The setup with as many shares as divide both the members and the shares there were; the
        same one where the rows of a batch do not divide over the larger shares.
    """
    groups = member_groups(setup.mesh)
    fewer = int(np.gcd(groups, members))
    if fewer == groups:
        return setup
    names = setup.mesh.axis_names
    sizes = dict(setup.mesh.shape) | {MEMBERS: fewer}
    sizes["data"] *= groups // fewer
    mesh = Mesh(setup.mesh.devices.reshape([sizes[name] for name in names]), names)
    rows, divisor = setup.layout.rows, row_divisor(mesh, setup.config.train.accumulate)
    return setup if rows % divisor else _on(setup, mesh)


def _on(setup: Setup, mesh: Mesh) -> Setup:
    """Return the setup on a mesh that has its axes."""
    shardings = {name: NamedSharding(mesh, one.spec) for name, one in setup.shardings.items()}
    compute = replace(setup.compute, mesh=mesh)
    return replace(setup, mesh=mesh, shardings=shardings, compute=compute)
