"""Re-initialization of the top blocks and the pooler: what a checkpoint has of them is not read.

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


def reinitialized(matching: Matching, towers: Towers, count: int, pooler: str) -> Matching:
    """Count the top blocks and the pooler as new.

    Args:
        matching: what of the checkpoint goes where.
        towers: the model's.
        count: blocks, from the top; with 0 nothing changes.
        pooler: how the names of the pooler begin.

    Raises:
        UserError: there are several towers, or not so many blocks.
    """
    if not count:
        return matching
    alone = [part for part in towers.values() if isinstance(part, Tower)]
    if len(alone) != 1:
        raise UserError(
            "model.reinit is for models of one tower, and this model has several.", "Leave it out."
        )
    (tower,) = alone
    if count > len(tower.blocks):
        raise UserError(
            f"model.reinit: cannot re-initialize {count} blocks of a model with "
            f"{len(tower.blocks)}."
        )
    anew = {
        name
        for name, depth in tower.depths.items()
        if tower.last - count <= depth < tower.last or name.startswith(pooler)
    }
    loaded = {name: tensor for name, tensor in matching.loaded.items() if name not in anew}
    return with_new(replace(matching, loaded=loaded), anew)


def with_new(matching: Matching, names: Iterable[str]) -> Matching:
    """Count some names as new."""
    return replace(matching, new=tuple(natural_order({*matching.new, *names})))
