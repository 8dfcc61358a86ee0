"""Member that trains as a run of its own, because a run decides something while it trains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxft.config.load import override_config
from jaxft.device.distributed import from_first, is_first, wait_for_all
from jaxft.errors import UserError
from jaxft.report.events import EventLog, read_events
from jaxft.report.terminal.progress import Progress
from jaxft.runs.folder import run_path
from jaxft.studies.members import solo_key
from jaxft.studies.part import Part
from jaxft.training.result import DivergedError
from jaxft.training.story import train


def check_solo(parts: Sequence[Part], *, halve: int | None, groups: int) -> None:
    """Raise a UserError where a member needs a run of its own, and the study has no use for one.

    Args:
        parts: of the study.
        halve: the factor of successive halving, or None.
        groups: shares of the devices.
    """
    keys = (solo_key(setup.config) for part in parts for setup in part.setups)
    key = next((key for key in keys if key is not None), None)
    flag = f"--halve {halve}" if halve is not None else f"--mesh-members {groups}"
    if key is not None and (halve is not None or groups > 1):
        raise UserError(
            f"{flag}: a member with {key} trains as a run of its own, to its end, on all devices.",
            f"Leave {flag.split()[0]} out.",
        )


def train_solo(
    part: Part, folder: epath.PathLike, log: EventLog, progress: Progress, *, quiet: bool
) -> dict[str, Any]:
    """Train a part's one member as `jaxft train` does, from where an earlier start was stopped.

    Args:
        part: with one member.
        folder: that holds the run while it trains.
        log: receives the run's losses and scores.
        progress: the progress bar of the study, which gives way to the run's own.
        quiet: print nothing.

    Returns:
        What `train_part` does; its scores on the test rows are those of the best checkpoint.

    Raises:
        UserError: see `train`; but a member that diverged is part of the result.
    """
    (member,), began = part.members, time.monotonic()
    where = {"run.dir": str(folder), "run.name": f"{part.index}-run", "run.trackers": []}
    overrides = [f"{key}={json.dumps(value)}" for key, value in where.items()]
    config = override_config(member.config, overrides)
    with progress.paused():
        try:
            scores = train(config, resume=True, quiet=quiet).metrics
        except DivergedError:
            scores = {}
    events = from_first(lambda: read_events(run_path(config.run.name, config.run.dir)))
    for event in events:
        _copy(event, member.index, log)
    return _result(part, events, scores) | {"seconds": time.monotonic() - began, "compiling": 0.0}


def _result(
    part: Part, events: Sequence[Mapping[str, Any]], scores: Mapping[str, float]
) -> dict[str, Any]:
    """Return a run's events and test scores (none where it diverged) as a part's result."""
    (member,), setup = part.members, part.setups[0]
    head = {"member": member.index, "bucket": part.bucket}
    last = max((event["step"] for event in events), default=0)
    return {
        "part": part.index,
        "bucket": part.bucket,
        "members": [member.index],
        "step": last,
        "rows": [
            {**head, "step": event["step"], "scores": _scores(event, tuple(setup.task.metrics))}
            for event in events
            if event["kind"] == "eval" and event["split"] == "eval" and event["step"]
        ],
        "diverged": {} if scores else {member.index: last},
        "test": [dict(scores)] if scores and "test" in setup.splits else [],
        "drift": _drift(events),
        "examples_per_second": _speed(events),
    }


def remove_run(part: Part, folder: epath.PathLike) -> None:
    """Delete the run of a part whose result is written."""
    run = epath.Path(folder) / f"{part.index}-run"
    wait_for_all()
    if is_first() and run.exists():
        run.rmtree()


def _copy(event: Mapping[str, Any], member: int, log: EventLog) -> None:
    """Write a run's loss, score or note into the events of its study."""
    step = event["step"]
    if event["kind"] == "train" and "loss" in event:  # none where no step was finite
        log.train(step, {"member": member, "loss": event["loss"]})
    elif event["kind"] == "eval" and step:
        named = {key: value for key, value in event.items() if isinstance(value, float)}
        log.eval(step, event["split"], {"member": member, **named})
    elif event["kind"] == "note":
        log.note(step, f"Member {member}: {event['text']}")


def _scores(event: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    values = {name: event.get(name) for name in names}
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }


def _drift(events: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Return the last measured drift of each depth, as the parts of a program have it."""
    drifts = [one["drift"] for one in events if one["kind"] == "drift"]
    return {depth: [value] for depth, value in drifts[-1].items()} if drifts else {}


def _speed(events: Sequence[Mapping[str, Any]]) -> float:
    rates = [one["examples_per_second"] for one in events if "examples_per_second" in one]
    return float(rates[-1]) if rates else 0.0
