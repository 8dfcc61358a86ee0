"""Parts of a study: who trains together, and the rungs in which the parts are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jaxft.device.distributed import from_first
from jaxft.engine.setup import Setup, with_config
from jaxft.errors import UserError
from jaxft.report.events import EventLog
from jaxft.report.terminal.progress import Progress
from jaxft.report.terminal.study import value_text
from jaxft.studies.folder import PARTS, StudyFolder
from jaxft.studies.halving import Rungs, next_part, survivors
from jaxft.studies.members import Member, make_buckets, solo_key
from jaxft.studies.memory import Need, available_bytes, chunk_sizes, need_of
from jaxft.studies.part import Part, train_part
from jaxft.studies.program.phase import Programs
from jaxft.studies.program.placement import build_spread
from jaxft.studies.saved_states import SavedStates
from jaxft.studies.solo import remove_run, train_solo


def make_parts(
    members: Sequence[Member],
    before: Sequence[Sequence[int]] | None = None,
    devices: Sequence | None = None,
    groups: int = 1,
) -> tuple[list[Part], list[Need]]:
    """Decide which members train together, and compute the memory of each bucket.

    Args:
        members: of the study.
        before: the members of each part of the study that is resumed.
        devices: the devices to run on; None for all.
        groups: shares of the devices, each of which trains its own members.

    Raises:
        UserError: a config, its data or its checkpoint is wrong, or a member does not fit.
    """
    parts: list[Part] = []
    needs: list[Need] = []
    for bucket, group in enumerate(make_buckets(members)):
        first = build_spread(group[0].config, groups, devices)
        setups = {member.index: with_config(first, member.config) for member in group}
        need = need_of(first)
        if solo_key(first.config) is not None:
            sizes = [1] * len(group)
        elif before is None:
            _check_divides(len(group), groups)
            count = len(group) // groups
            each = from_first(partial(_chunks, need, count, first))
            sizes = [size * groups for size in each]
        else:
            sizes = [len(part) for part in before if part[0] in setups]
        rest = list(group)
        for count in sizes:
            chosen, rest = tuple(rest[:count]), rest[count:]
            own = tuple(setups[member.index] for member in chosen)
            total = own[0].length.total_steps
            parts.append(Part(len(parts), bucket, chosen, own, first=0, stop=total))
            needs.append(need)
    return parts, needs


def _chunks(need: Need, members: int, setup: Setup) -> list[int]:
    """Divide the members of a share of the devices into chunks that fit."""
    return chunk_sizes(need, members, available_bytes(setup.mesh))


def _check_divides(members: int, groups: int) -> None:
    """Raise a UserError where the shares of the devices would have unequal members."""
    if members % groups:
        raise UserError(
            f"--mesh-members {groups} does not divide the {members} members of a program.",
            "Choose a number that does, or vary other values.",
        )


def about_part(part: Part, need: Need, vary: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Describe a part for `study.json` and the terminal."""
    common = {
        key: part.members[0].values[key]
        for key in vary
        if len(vary[key]) > 1 and len({json.dumps(m.values[key]) for m in part.members}) == 1
    }
    return {
        "index": part.index,
        "bucket": part.bucket,
        "members": [member.index for member in part.members],
        "differs": ", ".join(f"{key} {value_text(value)}" for key, value in common.items()),
        "first": part.first,
        "steps": part.steps,
        "bytes": need.of(len(part.members)),
        "state": need.state,
    }


def train_parts(
    parts: Sequence[Part],
    rungs: Rungs,
    folder: StudyFolder,
    log: EventLog,
    progress: Progress,
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Train the parts of a study, rung by rung, but for what an earlier start has trained.

    Args:
        parts: of the first rung.
        rungs: where the worst settings stop.
        folder: of the study, which receives each part's result.
        log: receives loss curves and scores.
        progress: the progress bar of the study.
        quiet: print nothing of the members that train as runs of their own.

    Returns:
        The result of each part of each rung, in order; see `train_part`. Their `share` is that of
        the steps which their members were trained for.
    """
    programs = {part.bucket: Programs() for part in parts}
    results: list[dict[str, Any]] = []
    described, done, runs = list(folder.about()["parts"]), 0, folder.path / PARTS
    with SavedStates(runs) as saved:
        for rung, share in enumerate(rungs.shares):
            for part in parts:
                progress.heading(f"program {part.bucket + 1}, {len(part.members)} members")
                if folder.part(part.index) is None:
                    if solo_key(part.setups[0].config) is not None:
                        result = train_solo(part, runs, log, progress, quiet=quiet)
                    else:
                        result = train_part(part, programs[part.bucket], saved, log, progress, done)
                    folder.write_part(part.index, json.loads(json.dumps(result)))
                remove_run(part, runs)
                results.append({**(folder.part(part.index) or {}), "share": share})
                done += part.steps
                if part.is_last:
                    saved.discard(part.index)
                if part.source is not None:
                    saved.discard(part.source.index)
            if rung + 1 == len(rungs.shares) or not parts:  # or every member has diverged
                break
            before, parts = parts, _go_on(parts, results, rungs, rungs.shares[rung + 1])
            note = _rung_line(before, parts, share)
            log.note(max(part.stop for part in before), note)
            progress.message(note)
            described += _about_rung(parts, described)
            folder.update(parts=described)
        for index in range(len(described)):
            saved.discard(index)
    return results


def _go_on(
    parts: Sequence[Part], results: Sequence[Mapping[str, Any]], rungs: Rungs, share: float
) -> list[Part]:
    """Return the parts of the next rung, in which only the best members go on, to a share."""
    chosen = survivors([one for part in parts for one in part.members], results, rungs)
    following: list[Part] = []
    for part in parts:
        index = len(results) + len(following)
        if (one := next_part(part, index, chosen, share)) is not None:
            following.append(one)
    return following


def _rung_line(before: Sequence[Part], after: Sequence[Part], share: float) -> str:
    left, came = (sum(len(part.members) for part in of) for of in (after, before))
    return f"After {share:.0%} of the steps {left} of {came} members go on."


def _about_rung(parts: Sequence[Part], described: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Describe the parts of a new rung, which go on from others."""
    return [
        {
            **described[part.source.index],
            "index": part.index,
            "members": [member.index for member in part.members],
            "first": part.first,
            "steps": part.steps,
        }
        for part in parts
        if part.source is not None and part.index >= len(described)
    ]


def reached_steps(folder: StudyFolder) -> dict[int, int]:
    """Return the step that each member goes on from, where an earlier start has trained it.

    Args:
        folder: of the study.
    """
    reached: dict[int, int] = {}
    with SavedStates(folder.path / PARTS) as saved:
        for part in folder.about()["parts"]:
            earlier = folder.part(part["index"]) or saved.record(part["index"])
            if earlier is not None:
                reached |= dict.fromkeys(part["members"], earlier["step"])
    return reached
