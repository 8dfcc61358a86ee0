"""Rows whose positions lie on several devices: dealt to them before the stem, and put back.

B rows, T positions, D width. Only what a causal mask covers is dealt (`layers.ring.order`); other
rows are cut where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.errors import UserError
from jaxft.models.layers.batch import PLACES, TEXT_NAMES, Batch
from jaxft.models.layers.decoder import CausalLm
from jaxft.models.layers.kernels import CONTEXT, RING, ROWS, context_of
from jaxft.models.layers.ring.order import dealt_order
from jaxft.models.tower.tower import Compute, Part, Tower

TARGETS = "targets"  # what a top scores at each position


@dataclass(frozen=True)
class Deal:
    """Order of the positions of a batch's rows on devices.

    Args:
        mesh: the devices.
        order: [T]: which position is at each place.
    """

    mesh: Mesh
    order: np.ndarray

    def batch(self, batch: Batch) -> Batch:
        """Return the batch in that order, with the place that each position has in its row."""
        names = (*TEXT_NAMES, TARGETS)
        dealt = {n: self._placed(batch[n][:, self.order]) for n in names if n in batch}
        return {
            **batch,
            **dealt,
            PLACES: jnp.asarray(self.order).reshape(context_of(self.mesh), -1),
        }

    def undone(self, array: jax.Array) -> jax.Array:
        """Return an array [B, T, ...] in the order of the row."""
        return self._placed(array[:, np.argsort(self.order)])

    def _placed(self, array: jax.Array) -> jax.Array:
        sharding = NamedSharding(self.mesh, PartitionSpec(ROWS, CONTEXT))
        return jax.lax.with_sharding_constraint(array, sharding)


def deal_of(tower: Tower, batch: Batch, compute: Compute) -> Deal | None:
    """Return the deal of a batch's rows; None where they stay as they are, as for Ulysses.

    Raises:
        UserError: the rows do not divide, or the tower's attention cannot be divided.
    """
    causal = tower.needs is not None and tower.needs.causal
    if context_of(compute.mesh) == 1 or compute.whole_rows or not causal:
        return None
    assert compute.mesh is not None and tower.needs is not None  # noqa: PT018 - one fact
    shape = batch["input_ids"].shape
    kernel = compute.kernel(tower.needs, shape)
    if kernel is None or kernel.name != RING:
        return None
    return Deal(compute.mesh, dealt_order(shape[1], context_of(compute.mesh)))


def scores_positions(tower: Tower, batch: Batch) -> bool:
    """Return whether the top gives numbers of each position alone, which can be put back."""
    return TARGETS in batch and isinstance(tower.top.module, CausalLm)


def check_context(towers: Mapping[str, Tower | Part], mesh: Mesh) -> None:
    """Raise a UserError where a model's positions cannot be divided over a mesh's `context`."""
    devices = context_of(mesh)
    if devices == 1:
        return
    for tower in towers.values():
        if isinstance(tower, Part):
            continue
        why = None
        if tower.reads is not None:
            why = "a decoder that reads a source has no ring for it"
        elif tower.needs is None:
            why = "images and pairs of towers have too few positions"
        elif tower.needs.positions:
            why = "its attention adds learned scores of positions"
        if why is not None:
            raise UserError(
                f"mesh.context: this model cannot be divided over {devices} devices: {why}.",
                "Use mesh.fsdp or mesh.data in its place.",
            )
