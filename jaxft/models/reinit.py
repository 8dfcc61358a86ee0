"""Blocks that begin anew: what a checkpoint has of its top blocks and its pooler is not read.

Source: Zhang et al. (2020), https://arxiv.org/abs/2006.05987, section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from jaxft.errors import UserError
from jaxft.models.family import Towers
from jaxft.models.tower.tower import Tower
from jaxft.models.weights.names import Matching
from jaxft.tree import natural_order

POOLER = "pooler/"


def reinitialised(matching: Matching, towers: Towers, count: int) -> Matching:
    """What goes where, with the top blocks and the pooler among what is new.

    Args:
        matching: what of the checkpoint goes where.
        towers: the model's.
        count: blocks, from the top; with 0 nothing changes.

    Raises:
        UserError: there are several towers, or not so many blocks.
    """
    if not count:
        return matching
    alone = [part for part in towers.values() if isinstance(part, Tower)]
    if len(alone) != 1:
        raise UserError("model.reinit: this model has several towers.", "Leave it out.")
    (tower,) = alone
    if count > len(tower.blocks):
        raise UserError(
            f"model.reinit: {count} blocks are to begin anew, and the model has "
            f"{len(tower.blocks)}."
        )
    anew = {
        name
        for name, depth in tower.depths.items()
        if tower.last - count <= depth < tower.last or name.startswith(POOLER)
    }
    loaded = {name: tensor for name, tensor in matching.loaded.items() if name not in anew}
    return with_new(replace(matching, loaded=loaded), anew)


def with_new(matching: Matching, names: Iterable[str]) -> Matching:
    """What goes where, with some names among those that count as new."""
    return replace(matching, new=tuple(natural_order({*matching.new, *names})))
