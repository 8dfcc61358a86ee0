"""Groups: parameters that are trained alike, or not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from jaxft.errors import UserError
from jaxft.layerwise.schedules import Multiplier, Schedule
from jaxft.tree import select

REST, BASE = "rest", "base"


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike, or not at all.

    Attributes:
        name: of the group, in tables and curves.
        match: one regular expression of whole parameter names, or several; or
        depth: the lowest and highest depth, both in: 0 the embeddings, i + 1 block i, then the
            final norm and the head.
        freeze: never differentiated, never changed.
        lr_mult: multiplies the rate of the group.
        lr: peak rate in place of the table's.
        weight_decay: in place of the table's.
        schedule: in place of the table's: one by name, or a function step -> multiplier.
        optimizer: the name of an update rule of its own.

    Raises:
        UserError: neither or both of `match` and `depth` are given, a range is upside down, or a
            decay is negative.
    """

    name: str
    match: str | Sequence[str] | None = None
    depth: tuple[int, int] | None = None
    freeze: bool = False
    lr_mult: float = 1.0
    lr: float | None = None
    weight_decay: float | None = None
    schedule: Schedule | Multiplier | None = None
    optimizer: str | None = None

    def __post_init__(self) -> None:
        if (self.match is None) == (self.depth is None) or self.match in ([], ()):
            raise UserError(f"Group '{self.name}' needs exactly one of match and depth.")
        if self.depth is not None and not 0 <= self.depth[0] <= self.depth[1]:
            low, high = self.depth
            raise UserError(f"Group '{self.name}': depth ({low}, {high}) is not (lowest, highest).")
        if self.weight_decay is not None and not self.weight_decay >= 0:
            raise UserError(
                f"Group '{self.name}': weight_decay is {self.weight_decay}, and must be 0 or more."
            )
        if self.name == REST:
            raise UserError(f"'{REST}' is the group of all parameters that no other group owns.")


def find_owners(
    names: Sequence[str],
    depths: Mapping[str, int],
    groups: Sequence[Group],
    only: Collection[str] | None,
) -> dict[str, str]:
    """Find the group of every parameter: the first that matches owns it, `rest` the others.

    Args:
        names: all parameters.
        depths: name -> depth.
        groups: in order.
        only: the parameters that groups are made of; all others are of `base`. None for all.

    Raises:
        UserError: a pattern or depth range matches nothing, a group owns nothing, or two have one
            name.
    """
    owner: dict[str, str] = {}
    for index, group in enumerate(groups):
        where = f"groups[{index}] ({group.name})"
        if group.name in {other.name for other in groups[:index]}:
            raise UserError(f"{where}: a group above it has this name too.", "Rename one of them.")
        matched = _matched(group, names, depths, where)
        if only is not None:
            if group.name == BASE:
                raise UserError(
                    f"{where}: '{BASE}' is what an adapter leaves frozen.", "Rename it."
                )
            matched = [name for name in matched if name in only]
            if not matched:
                raise UserError(
                    f"{where}: the adapter leaves all that it matches frozen.",
                    "Leave the group out; what trains is the adapter and the head.",
                )
        fresh = [name for name in matched if name not in owner]
        if not fresh:
            earlier = owner[matched[0]]
            raise UserError(
                f"{where}: group '{earlier}' above it already owns all that it matches.",
                "The first match owns a parameter: put the narrower group first.",
            )
        owner.update((name, group.name) for name in fresh)
    left = {name: REST if only is None or name in only else BASE for name in names}
    return left | owner


def _matched(
    group: Group, names: Sequence[str], depths: Mapping[str, int], where: str
) -> list[str]:
    if group.match is not None:
        patterns = [group.match] if isinstance(group.match, str) else group.match
        matched = {name for p in patterns for name in select(p, names, f"{where}.match")}
        return [name for name in names if name in matched]
    low, high = group.depth or (0, 0)  # a group has one of the two
    matched = {name for name in names if low <= depths[name] <= high}
    highest = max(depths.values())
    if not matched or high > highest:
        raise UserError(
            f"{where}.depth: [{low}, {high}] is outside this model's depths.",
            f"They run from 0 (embeddings) to {highest} (head).",
        )
    return [name for name in names if name in matched]
