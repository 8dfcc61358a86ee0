"""Phases: a run cut into stretches, each with a LayerTable of its own.

One mechanism for linear probing, probing then fine-tuning, and gradual unfreezing: a phase says
which parameters train; everything else about them (group, multiplier, decay) is the run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxft.durations import ZERO, Duration, Pace, resolve_steps
from jaxft.errors import UserError
from jaxft.layerwise.schedules import Schedule
from jaxft.layerwise.table import LayerTable
from jaxft.tree import select

HEAD = "head/.*"
PROBE_LENGTH, PROBE_RATE = Duration(30, "percent"), 1e-3  # of `lp_ft`'s first phase


@dataclass(frozen=True)
class PhaseSpec:
    """A phase before it is laid over a model and a length.

    Attributes:
        until: where it ends, from the start of the run.
        unfreeze: patterns of the parameters that train; what a group freezes never does.
        depth: the lowest and highest depth that train, in place of `unfreeze`.
        lr: peak rate in place of the optimizer's.
        schedule: over the phase's own steps, in place of those over the whole run.
        rewarm: the length of a linear rise from zero as the phase begins.
    """

    until: Duration
    unfreeze: Literal["all"] | Sequence[str] = "all"
    depth: tuple[int, int] | None = None
    lr: float | None = None
    schedule: Schedule | None = None
    rewarm: Duration = ZERO


WHOLE = PhaseSpec(Duration(100, "percent"))


@dataclass(frozen=True)
class LeafSchedule:
    """Each leaf's own fall to zero, half a cosine, on top of its group's rate.

    Attributes:
        stops: `[leaves]` the step at which each leaf's rate is zero.
        scales: `[leaves]` the start of its rate, as a multiple of the group's.
    """

    stops: np.ndarray
    scales: np.ndarray

    def at(self, step: int) -> np.ndarray:
        """Compute the multiplier of every leaf's rate at a step: `[leaves]` float32."""
        share = np.minimum(step / self.stops, 1)
        scale = 0.5 * self.scales * (1 + np.cos(np.pi * share))  # [leaves]
        return np.asarray(scale, np.float32)


@dataclass(frozen=True)
class Phase:
    """One stretch of a run.

    Attributes:
        index: from 0.
        start: the first step that is taken in it, counted from 0.
        stop: the step after its last.
        spec: as it was asked for.
        table: what trains in it, and how.
        leaf_schedule: the fall of each rate of `table.trainable`; None where rates move with
            their group alone.
    """

    index: int
    start: int
    stop: int
    spec: PhaseSpec
    table: LayerTable
    leaf_schedule: LeafSchedule | None = None

    def lr_scale_at(self, step: int) -> np.ndarray:
        """Compute the scale of the multipliers at a step: `[leaves]`, or `[]` where all alike."""
        if self.leaf_schedule is None:
            return np.ones((), np.float32)
        return self.leaf_schedule.at(step)


def phase_specs(
    asked: Sequence[PhaseSpec] | str, *, top: int, epochs: float, share: float = 1 / 3
) -> list[PhaseSpec]:
    """List the phases of a recipe, or those given; one that trains all where there are none.

    Args:
        asked: phases in order, or a recipe's name.
        top: the model's highest depth.
        epochs: the length of the run.
        share: of the blocks left, how many `pipe_transformer` freezes an epoch.

    Source: linear probing, then fine-tuning: Kumar et al. (2022),
        https://arxiv.org/abs/2202.10054. Gradual unfreezing, one depth an epoch from the top
        down: Howard and Ruder (2018), https://arxiv.org/abs/1801.06146. A share of the blocks
        left frozen each epoch: He et al. (2021), PipeTransformer,
        https://arxiv.org/abs/2102.03161, without its cap.
    """
    match asked:
        case "linear_probe":
            return [PhaseSpec(WHOLE.until, unfreeze=[HEAD])]
        case "lp_ft":
            constant = Schedule("constant")
            probe = PhaseSpec(PROBE_LENGTH, unfreeze=[HEAD], lr=PROBE_RATE, schedule=constant)
            return [probe, WHOLE]
        case "gradual_unfreezing":
            count = max(min(top + 1, int(epochs)), 1)
            stops = [Duration(epoch, "epochs") for epoch in range(1, count)]
            return [
                PhaseSpec(until, depth=(max(top - index, 0), top))
                for index, until in enumerate([*stops, WHOLE.until])
            ]
        case "pipe_transformer":
            lowest = [_frozen_after(epoch, top - 1, share) for epoch in range(max(int(epochs), 1))]
            starts = [epoch for epoch, low in enumerate(lowest) if low not in lowest[:epoch]]
            stops = [Duration(epoch, "epochs") for epoch in starts[1:]]
            return [
                PhaseSpec(until, depth=(lowest[epoch], top))
                for epoch, until in zip(starts, [*stops, WHOLE.until], strict=True)
            ]
    return [one for one in asked if isinstance(one, PhaseSpec)] or [WHOLE]


def _frozen_after(epoch: int, blocks: int, share: float) -> int:
    """Find the lowest depth that trains after so many epochs; the embeddings stop with a block."""
    frozen = math.ceil(blocks * (1 - (1 - share) ** epoch) - 1e-9)
    return frozen + 1 if frozen else 0


def make_phases(
    specs: Sequence[PhaseSpec],
    *,
    table: Callable[[float | None], LayerTable],
    total_steps: int,
    pace: Pace | float,
) -> tuple[Phase, ...]:
    """Lay phases over a run, from its first step to its last.

    Args:
        specs: as `phase_specs` gives them.
        table: makes the LayerTable without phases, at a peak rate in place of the optimizer's
            (None: as it is).
        total_steps: optimizer steps in the run.
        pace: through the examples, or the steps in an epoch.

    Raises:
        UserError: phases out of order, that do not end where the run does, or that train nothing.
    """
    phases: list[Phase] = []
    start = 0
    for index, spec in enumerate(specs):
        stop = resolve_steps(spec.until, total_steps, pace, start=True)
        where = f"phases[{index}]"
        if stop <= start:
            raise UserError(
                f"{where}.until: {spec.until} is step {stop}, and the phase before it ends at "
                f"step {start}.",
                "Write the phases in order; 'until' counts from the start of the run.",
            )
        whole = table(spec.lr)
        chosen = set(_chosen(whole, spec, where))
        previous = phases[-1].table if phases else None
        phases.append(Phase(index, start, stop, spec, within(whole, chosen, previous, index)))
        start = stop
    if start != total_steps:
        raise UserError(
            f"phases: the last one ends at step {start:,}, and the run at step {total_steps:,}.",
            "Let the last phase have 'until: 100%'.",
        )
    return tuple(phases)


def _chosen(table: LayerTable, spec: PhaseSpec, where: str) -> list[str]:
    """Choose the parameters that train in a phase: those named, but for what a group freezes."""
    names = [leaf.name for leaf in table.leaves]
    if spec.depth is not None:
        low, high = spec.depth
        named = {leaf.name for leaf in table.leaves if low <= leaf.depth <= high}
    elif spec.unfreeze == "all":
        named = set(names)
    else:
        named = {n for p in spec.unfreeze for n in select(p, names, f"{where}.unfreeze")}
    chosen = [name for name in table.trainable if name in named]
    if not chosen:
        raise UserError(
            f"{where}: it trains nothing.",
            "What it names is frozen by a group, or no depth of this model is in its range.",
        )
    return chosen


def within(
    table: LayerTable, chosen: Collection[str], previous: LayerTable | None, index: int
) -> LayerTable:
    """Restrict a table to `chosen`, and say since which phase each parameter trains.

    Args:
        table: without phases.
        chosen: names.
        previous: the table of the phase before; None for the first.
        index: the phase's.
    """
    before = (
        {leaf.name: leaf.since for leaf in previous.leaves if leaf.trainable} if previous else {}
    )
    leaves = tuple(
        replace(leaf, since=before.get(leaf.name, index))
        if leaf.name in chosen
        else replace(leaf, trainable=False, multiplier=0.0)
        for leaf in table.leaves
    )
    owning = {leaf.group for leaf in leaves if leaf.trainable}
    groups = tuple(
        replace(group, trainable=group.trainable and group.name in owning) for group in table.groups
    )
    return LayerTable(leaves, groups)


def ever_trained(phases: Sequence[Phase], until: int | None = None) -> frozenset[str]:
    """Collect the parameters that some of the first `until` phases (None: all) trains."""
    return frozenset(name for phase in phases[:until] for name in phase.table.trainable)
