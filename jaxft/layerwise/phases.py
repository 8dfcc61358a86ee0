"""Phases: a run cut into stretches, each with a LayerTable of its own.

One mechanism for linear probing, probing then fine-tuning, and gradual unfreezing: a phase says
which parameters train; everything else about them (group, multiplier, decay) is the run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxft.config.durations import Duration, resolve_steps
from jaxft.config.recipe import PhaseSection, ScheduleSection
from jaxft.errors import UserError
from jaxft.layerwise.table import LayerTable
from jaxft.tree import select

HEAD = "head/.*"
PROBE_LENGTH, PROBE_RATE = Duration(30, "percent"), 1e-3  # of `lp_ft`'s first phase
WHOLE = PhaseSection(until=Duration(100, "percent"))


@dataclass(frozen=True)
class Anneal:
    """Each leaf's own way down to zero, half a cosine, on top of its group's rate.

    Attributes:
        stops: `[leaves]` the step at which each leaf's rate is zero.
        scales: `[leaves]` what its rate starts at, as a multiple of the group's.
    """

    stops: np.ndarray
    scales: np.ndarray

    def at(self, step: int) -> np.ndarray:
        """What every leaf's rate is multiplied by at a step: `[leaves]` float32."""
        share = np.minimum(step / self.stops, 1)
        return (0.5 * self.scales * (1 + np.cos(np.pi * share))).astype(np.float32)


@dataclass(frozen=True)
class Phase:
    """One stretch of a run.

    Attributes:
        index: from 0.
        start: the first step that is taken in it, counted from 0.
        stop: the step after its last.
        section: what the config says of it.
        table: what trains in it, and how.
        anneal: how rates fall leaf by leaf, over the leaves of `table.trainable`; None where
            they move with their group alone.
    """

    index: int
    start: int
    stop: int
    section: PhaseSection
    table: LayerTable
    anneal: Anneal | None = None

    def pace(self, step: int) -> np.ndarray:
        """What multipliers are multiplied by at a step: `[leaves]`, or `[]` where all alike."""
        return np.ones((), np.float32) if self.anneal is None else self.anneal.at(step)


def phase_sections(
    written: Sequence[PhaseSection] | str, *, top: int, epochs: float, share: float = 1 / 3
) -> list[PhaseSection]:
    """A config's phases, a recipe written out; one that trains all where there are none.

    Args:
        written: the config's `phases`.
        top: the model's highest depth.
        epochs: the length of the run.
        share: `freezing.share`.

    Source: linear probing, then fine-tuning: Kumar et al. (2022),
        https://arxiv.org/abs/2202.10054. Gradual unfreezing, one depth an epoch from the top
        down: Howard and Ruder (2018), https://arxiv.org/abs/1801.06146. A share of the blocks
        left frozen each epoch: He et al. (2021), PipeTransformer,
        https://arxiv.org/abs/2102.03161, without its cap.
    """
    match written:
        case "linear_probe":
            return [PhaseSection(until=WHOLE.until, unfreeze=[HEAD])]
        case "lp_ft":
            constant = ScheduleSection(kind="constant")
            probe = PhaseSection(
                until=PROBE_LENGTH, unfreeze=[HEAD], lr=PROBE_RATE, schedule=constant
            )
            return [probe, WHOLE]
        case "gradual_unfreezing":
            count = max(min(top + 1, int(epochs)), 1)
            stops = [Duration(epoch, "epochs") for epoch in range(1, count)]
            return [
                PhaseSection(until=until, depth=(max(top - index, 0), top))
                for index, until in enumerate([*stops, WHOLE.until])
            ]
        case "pipe_transformer":
            lowest = [_frozen_after(epoch, top - 1, share) for epoch in range(max(int(epochs), 1))]
            starts = [epoch for epoch, low in enumerate(lowest) if low not in lowest[:epoch]]
            stops = [Duration(epoch, "epochs") for epoch in starts[1:]]
            return [
                PhaseSection(until=until, depth=(lowest[epoch], top))
                for epoch, until in zip(starts, [*stops, WHOLE.until], strict=True)
            ]
    return [one for one in written if isinstance(one, PhaseSection)] or [WHOLE]


def _frozen_after(epoch: int, blocks: int, share: float) -> int:
    """The lowest depth that still trains after so many epochs; with a block the embeddings stop."""
    frozen = math.ceil(blocks * (1 - (1 - share) ** epoch) - 1e-9)
    return frozen + 1 if frozen else 0


def make_phases(
    sections: Sequence[PhaseSection],
    *,
    table: Callable[[float | None], LayerTable],
    total_steps: int,
    steps_per_epoch: int,
) -> tuple[Phase, ...]:
    """A run's phases, from its first step to its last.

    Args:
        sections: as `phase_sections` gives them.
        table: the LayerTable without phases, at a peak rate in place of `optimizer.lr` (None:
            as it is).
        total_steps: optimizer steps in the run.
        steps_per_epoch: those in an epoch.

    Raises:
        UserError: phases out of order, that do not end where the run does, or that train nothing.
    """
    phases: list[Phase] = []
    start = 0
    for index, section in enumerate(sections):
        stop = resolve_steps(section.until, total_steps, steps_per_epoch)
        where = f"phases[{index}]"
        if stop <= start:
            raise UserError(
                f"{where}.until: {section.until} is step {stop}, and the phase before it ends at "
                f"step {start}.",
                "Write the phases in order; 'until' counts from the start of the run.",
            )
        whole = table(section.lr)
        chosen = set(_chosen(whole, section, where))
        previous = phases[-1].table if phases else None
        phases.append(Phase(index, start, stop, section, within(whole, chosen, previous, index)))
        start = stop
    if start != total_steps:
        raise UserError(
            f"phases: the last one ends at step {start:,}, and the run at step {total_steps:,}.",
            "Let the last phase have 'until: 100%'.",
        )
    return tuple(phases)


def _chosen(table: LayerTable, section: PhaseSection, where: str) -> list[str]:
    """What trains in a phase: those named, but for what a group freezes."""
    names = [leaf.name for leaf in table.leaves]
    if section.depth is not None:
        low, high = section.depth
        named = {leaf.name for leaf in table.leaves if low <= leaf.depth <= high}
    elif section.unfreeze == "all":
        named = set(names)
    else:
        named = {n for p in section.unfreeze for n in select(p, names, f"{where}.unfreeze")}
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
    """The table in which only `chosen` trains, and since which phase each does.

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
    """The parameters that some phase trains, among the first `until` phases (None: all)."""
    return frozenset(name for phase in phases[:until] for name in phase.table.trainable)
