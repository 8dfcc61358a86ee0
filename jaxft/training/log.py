"""A run's log: its events, the terminal, the trackers, and the metrics of steps under way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self

import jax
from rich.console import Console

from jaxft.config.load import Config
from jaxft.device.distributed import from_first, is_first
from jaxft.engine.setup import Setup
from jaxft.errors import UserError
from jaxft.report.events import EventLog, read_events
from jaxft.report.terminal.progress import Progress
from jaxft.report.trackers import Tracker, open_trackers
from jaxft.runs.folder import RUN_FILE, RunFolder
from jaxft.training.layers import Seen, write_layers
from jaxft.training.meter import Meter
from jaxft.training.phase import PhaseStep

# Steps under way while the host makes the next batch and reads the metrics of those before.
IN_FLIGHT = 2


class Log:
    """The event log, the terminal and the meter of a run; used in a `with` block.

    Args:
        run: the run's folder.
        setup: the run.
        first: the step that it goes on from.
        trackers: what else is sent each event's numbers.
        console, quiet: the terminal.
        failure: (step, steps in a row) -> the error to end with where the loss stays not finite.

    Attributes:
        events, progress, meter: those.
    """

    def __init__(
        self,
        run: RunFolder,
        setup: Setup,
        first: int,
        trackers: Sequence[Tracker],
        console: Console,
        quiet: bool,
        failure: Callable[[int, int], UserError],
    ):
        config, self._open = setup.config, ExitStack()
        self._limit, self._failure = config.train.max_bad_steps, failure
        self._pending: deque[tuple[int, PhaseStep, dict[str, jax.Array], Seen]] = deque()
        self.meter = Meter(setup)
        # Of several processes the first alone writes.
        resumed = first or None
        self.events = EventLog(run.path, config.report.tensorboard, resumed, is_first(), trackers)
        self.progress = Progress(setup.length.total_steps, first, console, quiet)

    def __enter__(self) -> Self:
        self._open.enter_context(self.events)
        self._open.enter_context(self.progress)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def started(
        self, step: int, phase: PhaseStep, metrics: dict[str, jax.Array], layers: Seen
    ) -> None:
        """Take a step that is under way; its numbers are still on the devices.

        Args:
            step: steps begun, this one included.
            phase: the phase that it is of.
            metrics, layers: as it gives them.
        """
        self._pending.append((step, phase, metrics, layers))

    def read(self, most: int = 0) -> bool:
        """Read the metrics of all but the last `most` steps: those are over, or nearly.

        Returns:
            Whether the last step that was ever read was finite.

        Raises:
            UserError: too many steps in a row were not.
        """
        while len(self._pending) > most:
            step, phase, metrics, layers = self._pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            event = self.meter.add(phase, step, values)
            if event:
                self.events.train(step, event)
            self.progress.update(step, event)
            if phase.looks_at(step) or not self.meter.finite:
                write_layers(self.events, phase, step, layers, values["grad_norm"])
            if not self.meter.finite:
                note = f"Not finite (loss {values['loss']}): the step was undone."
                self.events.note(step, note)
                self.progress.message(f"step {step:,} was not finite and is undone")
            if values["bad_steps"] >= self._limit:
                raise self._failure(step, int(values["bad_steps"]))
        return self.meter.finite

    def say(self, step: int, event: str, message: str) -> None:
        """Note a sentence in the event log, and another in the terminal."""
        self.events.note(step, event)
        self.progress.message(message)


def earlier_events(run: RunFolder) -> list[dict[str, Any]]:
    """What a resumed run has told so far, the same in every process."""
    return from_first(lambda: read_events(run.path) if run.resumed else [])


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


def log_result(trackers: Sequence[Tracker], result: dict[str, Any]) -> None:
    """Hand on the final scores, and the step that they are of."""
    scores = {f"result/{name}": value for name, value in result["metrics"].items()}
    for tracker in trackers:
        tracker.log(None, {**scores, "result/step": result["step"]})
