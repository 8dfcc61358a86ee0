"""What a run tells of itself while it trains: its diary, and the trackers that its config names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from jaxft.config.load import Config
from jaxft.device.distributed import from_first, is_first
from jaxft.report.events import EventLog, read_events
from jaxft.report.trackers import Tracker, open_trackers
from jaxft.runs.folder import RUN_FILE, RunFolder


def read_diary(run: RunFolder) -> list[dict[str, Any]]:
    """What a resumed run has told so far, the same in every process."""
    return from_first(lambda: read_events(run.path) if run.resumed else [])


def open_diary(run: RunFolder, config: Config, first: int, trackers: Sequence[Tracker]) -> EventLog:
    """The run's events from step `first` on; of several processes the first alone writes them."""
    return EventLog(run.path, config.report.tensorboard, first or None, is_first(), trackers)


def find_trackers(
    run: RunFolder, config: Config, tell: Callable[[str], None]
) -> AbstractContextManager[list[Tracker]]:
    """The trackers of a run, in the first process; a resumed run is the same to them."""
    started = f"{config.run.name} {run.read_json(RUN_FILE)['started']}"
    about = {
        "name": config.run.name,
        "id": hashlib.sha256(started.encode()).hexdigest()[:16],
        "dir": str(run.path),
    }
    names = config.run.trackers if is_first() else ()
    return open_trackers(names, about, config.dump(), tell)


def tell_result(trackers: Sequence[Tracker], result: dict[str, Any]) -> None:
    """Hand on the final scores, and the step that they are of."""
    scores = {f"result/{name}": value for name, value in result["metrics"].items()}
    for tracker in trackers:
        tracker.log(None, {**scores, "result/step": result["step"]})
