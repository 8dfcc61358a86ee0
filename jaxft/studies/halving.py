"""Successive halving: the settings that score worst stop early, and the others go on.

Source: Jamieson and Talwalkar (2016), https://arxiv.org/abs/1502.07943.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxft.errors import UserError
from jaxft.studies.members import Member
from jaxft.studies.part import Part
from jaxft.studies.program.placement import respread
from jaxft.studies.rank import mark_rows, rank


@dataclass(frozen=True)
class Rungs:
    """Rungs of a study: where the worst settings stop.

    Attributes:
        shares: of the steps, at which each rung ends; the last is 1.
        factor: of the settings of a rung, the best 1 in `factor` go on; None where all do.
        metric: ranks them by the best score so far, as at the end.
        lower_is_better: of the metric.
    """

    shares: Sequence[float]
    factor: int | None
    metric: str
    lower_is_better: bool


def rung_ends(settings: int, factor: int | None) -> list[float]:
    """Return the shares of the steps after which the worst settings stop, and 1.

    Each is `factor` times the one before it, and they are as many as leave one setting or more.

    Args:
        settings: their number.
        factor: of the settings that train, the best 1 in `factor` go on; None trains all.

    Raises:
        UserError: there are too few settings to stop any.
    """
    if factor is None:
        return [1.0]
    if factor < 2:
        raise UserError(f"--halve is {factor}.", "Give 2 or more: the best 1 in that many go on.")
    if settings < factor:
        raise UserError(
            f"--halve {factor} stops none of {settings} settings.",
            f"Vary more values, at least {factor} settings besides seeds, or leave --halve out.",
        )
    rungs = 0
    while factor ** (rungs + 1) <= settings:
        rungs += 1
    return [factor ** (rung - rungs) for rung in range(rungs + 1)]


def first_part(part: Part, share: float) -> Part:
    """Return a part that ends at a share of its members' training.

    Raises:
        UserError: that is less than a step.
    """
    total = part.setups[0].length.total_steps
    if round(total * share) < 1:
        raise UserError(
            f"--halve: the first settings would stop after {share:.1%} of {total} steps.",
            "Train longer, or vary fewer values.",
        )
    return replace(part, stop=round(total * share))


def survivors(
    members: Sequence[Member], results: Sequence[Mapping[str, Any]], rungs: Rungs
) -> list[Member]:
    """Choose the members that go on: those of the best 1 in `factor` settings, rounded up.

    Args:
        members: of the parts that have ended; all seeds of a setting go on together.
        results: of these parts and those before, in order.
        rungs: of the study, with a factor.

    Returns:
        In the order of `members`; none that diverged.
    """
    assert rungs.factor is not None
    rows = [row for result in results for row in result["rows"]]
    marked = mark_rows(rows, rungs.metric, lower_is_better=rungs.lower_is_better)
    diverged = {int(m): at for result in results for m, at in result["diverged"].items()}
    ranking = rank(members, marked, diverged, rungs.metric, lower_is_better=rungs.lower_is_better)
    count = math.ceil(len(ranking) / rungs.factor)
    best = {index for entry in ranking[:count] for index in entry["members"]}
    return [one for one in members if one.index in best and one.index not in diverged]


def next_part(part: Part, index: int, members: Sequence[Member], share: float) -> Part | None:
    """Return the part in which those of a part's members that go on train; None without any.

    Args:
        part: that has ended.
        index: of the next part.
        members: that go on, of all parts.
        share: of the steps, at which the next part ends.
    """
    pairs = zip(part.members, part.setups, strict=True)
    chosen = [(one, setup) for one, setup in pairs if one in members]
    if not chosen:
        return None
    ones, setups = zip(*chosen, strict=True)
    setups = tuple(respread(setup, len(ones)) for setup in setups)
    stop = round(part.setups[0].length.total_steps * share)
    return replace(
        part, index=index, members=ones, setups=setups, first=part.stop, stop=stop, source=part
    )


def count_settings(members: Sequence[Member]) -> int:
    """Count the settings of members, which repeat them with other seeds."""
    return len({json.dumps(one.setting) for one in members})
