"""The LayerTable: each parameter's group, depth, rate and decay, and the parameters that train.

Depth counts from the input: 0 the embeddings, i + 1 block i, n + 1 the final norm and the head.
Where a model has several towers, depth is counted and decayed in each by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.layerwise.defaults import ADAMW, check_matrices, rest_ratio, state_bytes
from jaxft.layerwise.depth import preset_multipliers
from jaxft.layerwise.groups import BASE, REST, Group, find_owners
from jaxft.layerwise.moments import FLOAT32
from jaxft.layerwise.schedules import CONSTANT, Multiplier, Schedule, schedule_kind
from jaxft.numbers import LARGEST_FLOAT32
from jaxft.tree import natural_order


@dataclass(frozen=True)
class GroupRow:
    """One group: the parameters that share an algorithm, a peak rate and a schedule.

    Attributes:
        name: as in the config; `rest` owns what no group claimed.
        trainable: False for a frozen group.
        peak_rate: the schedule's highest rate, before multipliers; 0 where frozen.
        algorithm: the optimizer's name.
        weight_decay: decay per unit of rate, for the group's leaves that decay; None where the
            optimizer has one for all.
        schedule: of its rate; None where the optimizer has one for all.
        moments: how its moments are stored, as `narrowed` takes it.
    """

    name: str
    trainable: bool
    peak_rate: float
    algorithm: str
    weight_decay: float | None
    schedule: Schedule | Multiplier | None
    moments: str = FLOAT32


@dataclass(frozen=True)
class LeafRow:
    """One parameter.

    Attributes:
        multiplier: layer decay x `lr_mult`; 0 where frozen.
        decays: True where weight decay acts.
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
        """List one multiplier a trainable leaf, in the order of `trainable`: `[leaves]` float32."""
        return np.array([row.multiplier for row in self.leaves if row.trainable], np.float32)

    def weight_decays(self, default: float = 0.0) -> np.ndarray:
        """List one weight decay a training group: `[groups]` float32.

        Args:
            default: of the groups that have none of their own.
        """
        decays = [group.weight_decay for group in self.training_groups]
        return np.array([default if one is None else one for one in decays], np.float32)

    def fastest(self, multipliers: np.ndarray) -> np.ndarray:
        """Find the highest multiplier in each training group: `[groups]` float32.

        Args:
            multipliers: `[leaves]`, in the order of `trainable`.
        """
        groups = np.array([leaf.group for leaf in self.leaves if leaf.trainable])
        return np.array(
            [multipliers[groups == group.name].max() for group in self.training_groups], np.float32
        )

    def trunk(self) -> tuple[str, ...]:
        """List the frozen prefix: frozen leaves below the lowest depth at which anything trains."""
        lowest = min((leaf.depth for leaf in self.leaves if leaf.trainable), default=0)
        return tuple(leaf.name for leaf in self.leaves if leaf.depth < lowest)

    def summary(self) -> list[dict[str, Any]]:
        """Describe each group in a row; its peak rate is that of its fastest leaf."""
        return [self._summarise(group) for group in self.groups if self._owned(group.name)]

    def _owned(self, group: str) -> list[LeafRow]:
        return [leaf for leaf in self.leaves if leaf.group == group]

    def _summarise(self, group: GroupRow) -> dict[str, Any]:
        owned = self._owned(group.name)
        count = sum(leaf.parameters for leaf in owned)
        sizes = [
            state_bytes(group.algorithm, one.name, one.shape, group.moments)
            for one in owned
            if one.trainable
        ]
        return {
            "name": group.name,
            "depths": [min(leaf.depth for leaf in owned), max(leaf.depth for leaf in owned)],
            "leaves": len(owned),
            "parameters": count,
            "trainable": group.trainable,
            "peak_rate": group.peak_rate * max(leaf.multiplier for leaf in owned),
            "lowest_peak_rate": group.peak_rate * min(leaf.multiplier for leaf in owned),
            "schedule": schedule_kind(group.schedule) if group.trainable else None,
            "optimizer": group.algorithm if group.trainable else None,
            "weight_decay": group.weight_decay if group.trainable else None,
            "decayed_leaves": sum(leaf.decays for leaf in owned),
            "optimizer_bytes": sum(sizes),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Describe each parameter in a row, for the report."""
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
    no_decay: Collection[str],
    groups: Sequence[Group] = (),
    layer_decay: float = 1.0,
    preset: str = "mae",
    lr: float,
    algorithm: str = ADAMW,
    moments: str = FLOAT32,
    adam_lr: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule | Multiplier | None = CONSTANT,
    only: Collection[str] | None = None,
    ratios: Mapping[str, float] | None = None,
    final_norms: tuple[str, ...] = ("norm/",),
    batch_factor: float = 1.0,
) -> LayerTable:
    """Put every parameter into exactly one group; the first group that matches owns it.

    Args:
        shapes: name -> anything with `.shape` and `.dtype`.
        depths: name -> depth in its tower, from the family.
        tops: name -> the depth of its tower's top: number of blocks + 1.
        no_decay: the names that weight decay skips.
        groups: in order.
        layer_decay: multiplies rates once a layer down; 1 is off.
        preset: counts layers and exponents (timm, mae, electra, ulmfit; see `depth_multiplier`),
            or multiplies rates by type (sharpness, fan_in; see `type_multipliers`).
        lr: peak rate of groups without their own.
        algorithm: the update rule of groups without their own.
        moments: how moments are stored, as `narrowed` takes it.
        adam_lr: peak rate of the leaves that Muon leaves to AdamW; None for the group's.
        weight_decay: of groups without their own; None leaves it to the optimizer.
        schedule: of groups without their own.
        only: the parameters that groups are made of, as an adapter has it; all others are the
            frozen group `base`. None for all.
        ratios: what multiplies the rate of single parameters.
        final_norms: how the names of final norms begin, one a tower.
        batch_factor: multiplies all rates, as they scale with the batch size.

    Raises:
        UserError: a pattern or depth range that matches nothing, a group that owns nothing, or
            nothing left to train.
    """
    names = natural_order(shapes)
    owner = find_owners(names, depths, groups, only)
    if only is not None:
        groups = [*groups, Group(BASE, match=".*", freeze=True)]
    by_name = {group.name: group for group in groups}
    skipped, ratios = set(no_decay), ratios or {}
    of_preset = preset_multipliers(preset, layer_decay, names, shapes, depths, tops, final_norms)

    def leaf(name: str) -> LeafRow:
        group, shape = by_name.get(owner[name]), tuple(shapes[name].shape)
        frozen, mult = (False, 1.0) if group is None else (group.freeze, group.lr_mult)
        of_rule = rest_ratio(rows[owner[name]], adam_lr, name, shape)
        multiplier = 0.0 if frozen else of_preset[name] * mult * ratios.get(name, 1.0) * of_rule
        trained = (owner[name], depths[name], not frozen, multiplier, name not in skipped)
        return LeafRow(name, shape, str(np.dtype(shapes[name].dtype)), *trained)

    rest = GroupRow(REST, True, lr, algorithm, weight_decay, schedule, moments)
    rows = {row.name: row for row in (*(_row(group, rest) for group in groups), rest)}
    scaled = [replace(row, peak_rate=row.peak_rate * batch_factor) for row in rows.values()]
    table = LayerTable(tuple(map(leaf, names)), tuple(scaled))
    check_matrices(table.leaves, table.training_groups)
    if not table.trainable:
        raise UserError("groups: every parameter is frozen, so nothing would be trained.")
    _check_rates(table)
    return table


def _check_rates(table: LayerTable) -> None:
    """Raise a UserError for a learning rate that is negative or that float32 does not hold."""
    peaks = {group.name: group.peak_rate for group in table.groups}
    for leaf in table.leaves:
        rate = peaks[leaf.group] * leaf.multiplier
        if not rate >= 0:  # NaN too
            raise UserError(
                f"The learning rate of '{leaf.name}' is {rate:.3g}, and must be 0 or more.",
                f"Change lr, or lr and lr_mult of group '{leaf.group}'.",
            )
        if max(rate, leaf.multiplier, peaks[leaf.group]) > LARGEST_FLOAT32:
            raise UserError(
                f"The learning rate of '{leaf.name}' is {rate:.3g}, with the multiplier "
                f"{leaf.multiplier:.3g}: more than float32 holds.",
                f"Lower optimizer.lr, or lr and lr_mult of group '{leaf.group}'.",
            )


def _row(group: Group, rest: GroupRow) -> GroupRow:
    """Make a group's row, in which `rest` says what the group does not."""
    lr = rest.peak_rate if group.lr is None else group.lr
    return GroupRow(
        name=group.name,
        trainable=not group.freeze,
        peak_rate=0.0 if group.freeze else lr,
        algorithm=group.optimizer or rest.algorithm,
        weight_decay=rest.weight_decay if group.weight_decay is None else group.weight_decay,
        schedule=group.schedule or rest.schedule,
        moments=rest.moments,
    )
