"""The LayerTable: what each parameter's group, depth, rate and decay are, and whether it trains.

Depth counts from the input: 0 the embeddings, i + 1 block i, n + 1 the final norm and the head.
Where a model has several towers, depth is counted and decayed in each by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.errors import UserError
from jaxft.layerwise.defaults import check_matrices, rest_ratio, state_size
from jaxft.layerwise.depth import depth_multiplier
from jaxft.tree import natural_order, select

REST, BASE = "rest", "base"


@dataclass(frozen=True)
class GroupRow:
    """One group: the parameters that share an algorithm, a peak rate and a schedule.

    Attributes:
        name: as in the config; `rest` owns what no group claimed.
        trainable: False for a frozen group.
        peak_rate: the schedule's highest rate, before multipliers; 0 where frozen.
        algorithm: the optimizer's name.
        weight_decay: decay per unit of rate, for the group's leaves that decay.
        schedule: the schedule section that drives it.
    """

    name: str
    trainable: bool
    peak_rate: float
    algorithm: str
    weight_decay: float
    schedule: ScheduleSection


@dataclass(frozen=True)
class LeafRow:
    """One parameter.

    Attributes:
        multiplier: layer decay x `lr_mult`; 0 where frozen.
        decays: whether weight decay acts.
        since: the phase since which it trains without a break.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    depth: int
    trainable: bool
    multiplier: float
    decays: bool
    since: int = 0

    @property
    def cohort(self) -> str:
        """The leaves that share an optimizer's state: of one group, and training equally long."""
        return f"{self.group}@{self.since}" if self.since else self.group

    @property
    def parameters(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class LayerTable:
    """Every parameter in exactly one group, in natural order of names."""

    leaves: tuple[LeafRow, ...]
    groups: tuple[GroupRow, ...]

    @property
    def trainable(self) -> tuple[str, ...]:
        return tuple(leaf.name for leaf in self.leaves if leaf.trainable)

    @property
    def frozen(self) -> tuple[str, ...]:
        return tuple(leaf.name for leaf in self.leaves if not leaf.trainable)

    @property
    def training_groups(self) -> tuple[GroupRow, ...]:
        """Groups that train and own a parameter: the columns of the run's rate array."""
        owning = {leaf.group for leaf in self.leaves if leaf.trainable}
        return tuple(group for group in self.groups if group.name in owning)

    def multipliers(self) -> np.ndarray:
        """One multiplier a trainable leaf, in the order of `trainable`: `[leaves]` float32."""
        return np.array([row.multiplier for row in self.leaves if row.trainable], np.float32)

    def weight_decays(self) -> np.ndarray:
        """One weight decay a training group: `[groups]` float32."""
        return np.array([group.weight_decay for group in self.training_groups], np.float32)

    def fastest(self, multipliers: np.ndarray) -> np.ndarray:
        """The highest multiplier in each training group: `[groups]` float32.

        Args:
            multipliers: `[leaves]`, in the order of `trainable`.
        """
        groups = np.array([leaf.group for leaf in self.leaves if leaf.trainable])
        return np.array(
            [multipliers[groups == group.name].max() for group in self.training_groups], np.float32
        )

    def trunk(self) -> tuple[str, ...]:
        """The frozen prefix: frozen leaves below the lowest depth at which anything trains."""
        lowest = min((leaf.depth for leaf in self.leaves if leaf.trainable), default=0)
        return tuple(leaf.name for leaf in self.leaves if leaf.depth < lowest)

    def summary(self) -> list[dict]:
        """One row a group, for people and the report; a peak rate is that of its fastest leaf."""
        return [self._summarise(group) for group in self.groups if self._owned(group.name)]

    def _owned(self, group: str) -> list[LeafRow]:
        return [leaf for leaf in self.leaves if leaf.group == group]

    def _summarise(self, group: GroupRow) -> dict:
        owned = self._owned(group.name)
        count = sum(leaf.parameters for leaf in owned)
        kept = [state_size(group.algorithm, one.name, one.shape) for one in owned if one.trainable]
        return {
            "name": group.name,
            "depths": [min(leaf.depth for leaf in owned), max(leaf.depth for leaf in owned)],
            "leaves": len(owned),
            "parameters": count,
            "trainable": group.trainable,
            "peak_rate": group.peak_rate * max(leaf.multiplier for leaf in owned),
            "lowest_peak_rate": group.peak_rate * min(leaf.multiplier for leaf in owned),
            "schedule": group.schedule.kind if group.trainable else None,
            "optimizer": group.algorithm if group.trainable else None,
            "weight_decay": group.weight_decay if group.trainable else None,
            "decayed_leaves": sum(leaf.decays for leaf in owned),
            "optimizer_bytes": 4 * sum(kept),
        }

    def rows(self) -> list[dict]:
        """One row a parameter, for the report."""
        groups = {group.name: group for group in self.groups}
        return [
            {
                "name": leaf.name,
                "shape": list(leaf.shape),
                "dtype": leaf.dtype,
                "group": leaf.group,
                "depth": leaf.depth,
                "trainable": leaf.trainable,
                "multiplier": leaf.multiplier,
                "peak_rate": groups[leaf.group].peak_rate * leaf.multiplier,
                "weight_decay": groups[leaf.group].weight_decay if leaf.decays else 0.0,
                "parameters": leaf.parameters,
            }
            for leaf in self.leaves
        ]


def build_table(
    shapes: Mapping[str, Any],
    *,
    depths: Mapping[str, int],
    tops: Mapping[str, int],
    no_decay: Sequence[str],
    groups: Sequence[Group],
    layer_decay: LayerDecaySection,
    optimizer: OptimizerSection,
    schedule: ScheduleSection,
    only: Collection[str] | None = None,
    ratios: Mapping[str, float] | None = None,
    batch_factor: float = 1.0,
) -> LayerTable:
    """Put every parameter into exactly one group; the first group that matches owns it.

    Args:
        shapes: name -> anything with `.shape` and `.dtype`.
        depths: name -> depth in its tower, from the family.
        tops: name -> the depth of its tower's top: number of blocks + 1.
        no_decay: the names that weight decay skips unless the config says otherwise.
        groups, layer_decay, optimizer, schedule: the config's sections.
        only: the parameters that groups are made of, as an adapter has it; all others are the
            frozen group `base`. None for all.
        ratios: what multiplies the rate of single parameters.
        batch_factor: what multiplies all rates: see `OptimizerSection.batch_factor`.

    Raises:
        UserError: a pattern or depth range that matches nothing, a group that owns nothing, or
            nothing left to train.
    """
    names = natural_order(shapes)
    if optimizer.no_decay != "auto":
        where = "optimizer.no_decay"
        no_decay = [n for pattern in optimizer.no_decay for n in select(pattern, names, where)]
    owner = _owners(names, depths, groups, only)
    if only is not None:
        groups = [*groups, Group(name=BASE, match=".*", freeze=True)]
    by_name = {group.name: group for group in groups}
    skipped, ratios = set(no_decay), ratios or {}

    def leaf(name: str) -> LeafRow:
        group, preset, rate = by_name.get(owner[name]), layer_decay.preset, layer_decay.rate
        frozen, mult = (False, 1.0) if group is None else (group.freeze, group.lr_mult)
        decay = depth_multiplier(preset, rate, depths[name], tops[name], name)
        of_rule = rest_ratio(rows[owner[name]], optimizer.adam_lr, name, tuple(shapes[name].shape))
        return LeafRow(
            name=name,
            shape=tuple(shapes[name].shape),
            dtype=str(np.dtype(shapes[name].dtype)),
            group=owner[name],
            depth=depths[name],
            trainable=not frozen,
            multiplier=0.0 if frozen else decay * mult * ratios.get(name, 1.0) * of_rule,
            decays=name not in skipped,
        )

    rows = {row.name: row for row in _group_rows(groups, optimizer, schedule)}
    scaled = [replace(row, peak_rate=row.peak_rate * batch_factor) for row in rows.values()]
    table = LayerTable(tuple(map(leaf, names)), tuple(scaled))
    check_matrices(table.leaves, table.training_groups)
    if not table.trainable:
        raise UserError("groups: every parameter is frozen, so nothing would be trained.")
    return table


def _group_rows(groups: Sequence[Group], optimizer: OptimizerSection, schedule: ScheduleSection):
    rows = [
        GroupRow(
            name=group.name,
            trainable=not group.freeze,
            peak_rate=0.0 if group.freeze else (optimizer.lr if group.lr is None else group.lr),
            algorithm=group.optimizer or optimizer.name,
            weight_decay=(
                optimizer.weight_decay if group.weight_decay is None else group.weight_decay
            ),
            schedule=group.schedule or schedule,
        )
        for group in groups
    ]
    rest = GroupRow(REST, True, optimizer.lr, optimizer.name, optimizer.weight_decay, schedule)
    return (*rows, rest)


def _owners(
    names: Sequence[str],
    depths: Mapping[str, int],
    groups: Sequence[Group],
    only: Collection[str] | None,
) -> dict[str, str]:
    owner: dict[str, str] = {}
    for index, group in enumerate(groups):
        where = f"groups[{index}] ({group.name})"
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
        found = {name for p in patterns for name in select(p, names, f"{where}.match")}
        return [name for name in names if name in found]
    low, high = group.depth or (0, 0)  # the config makes sure of one of the two
    found = {name for name in names if low <= depths[name] <= high}
    highest = max(depths.values())
    if not found or high > highest:
        raise UserError(
            f"{where}.depth: [{low}, {high}] is outside this model's depths.",
            f"They run from 0 (embeddings) to {highest} (head).",
        )
    return [name for name in names if name in found]
