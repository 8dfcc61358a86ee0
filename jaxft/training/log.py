"""Log of a run: its events, the terminal, the trackers, and the metrics of steps in flight."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self, TypeVar

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
from jaxft.storage.waiting import Watch
from jaxft.training.freezing.decisions import needs_maps_at
from jaxft.training.layers import LayerReadings, write_layers, write_map_norms
from jaxft.training.meter import Ended, Meter, SlowSteps
from jaxft.training.phase import PhaseStep
from jaxft.training.sampling.program import KIND as SAMPLING
from jaxft.training.sampling.program import choice_event

T = TypeVar("T")
# Steps in flight while the host makes the next batch and reads the metrics of those before.
IN_FLIGHT = 2


class Log:
    """Event log, terminal and meter of a run; used in a `with` block.

    Args:
        run: the run's folder.
        setup: the run.
        first: the step that it continues from.
        trackers: also receive each event's numbers.
        console, quiet: the terminal.
        failure: (step, number of consecutive steps that were not finite) -> the error to raise.

    Attributes:
        events, progress, meter: the three of them.
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
        self._pending: deque[
            tuple[int, PhaseStep, dict[str, jax.Array], LayerReadings, Future[Ended]]
        ] = deque()
        self.meter = Meter(setup)
        # Only the first process writes.
        resumed = first or None
        where = run.path, config.report.tensorboard, resumed, is_first()
        self.events = EventLog(*where, trackers, run.digests)
        self.progress = Progress(setup.length.total_steps, first, console, quiet)
        self._watch = Watch(self.progress.message)
        self._slow = SlowSteps(self.meter.clock, self._watch)
        self._last = 0.0  # when the last step read had ended

    def __enter__(self) -> Self:
        self._open.enter_context(self.events)
        self._open.enter_context(self.progress)
        self._open.enter_context(self._watch)
        return self

    def __exit__(self, *error: Any) -> None:
        self.meter.clock.close()
        self._open.__exit__(*error)

    def started(
        self, step: int, phase: PhaseStep, metrics: dict[str, jax.Array], layers: LayerReadings
    ) -> None:
        """Add a step in flight, whose results are still on the devices.

        Args:
            step: steps started, this one included.
            phase: its phase.
            metrics, layers: its results.
        """
        self.meter.compiles = False
        ended = self.meter.clock.ends(metrics["loss"])
        self._pending.append((step, phase, metrics, layers, ended))

    def read(self, most: int = 0) -> bool:
        """Read the metrics of all but the last `most` steps, which are done or almost done.

        Returns:
            Whether the last step read was finite.

        Raises:
            UserError: too many consecutive steps were not finite.
        """
        for step, phase, metrics, layers, end in taken(self._pending, most):
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            ended = end.result()
            self._last = ended.wall
            if slow := self._slow.add(step, phase.now.phase.index, ended.active):
                self.say(step, slow, slow)
            event = self.meter.add(phase, step, values, ended.active)
            if event:
                self.events.train(step, event)
            self.progress.update(step, event, ended.wall)
            if phase.reads_layers_at(step) or not self.meter.finite:
                write_layers(self.events, phase, step, layers, values["grad_norm"])
            if needs_maps_at(phase.setup, step):
                write_map_norms(self.events, phase, step, layers)
            if not self.meter.finite:
                note = f"Not finite (loss {values['loss']}): the step was undone."
                self.events.note(step, note)
                self.progress.message(f"step {step:,} was not finite and is undone")
            if values["bad_steps"] >= self._limit:
                raise self._failure(step, int(values["bad_steps"]))
        return self.meter.finite

    def idle(self, since: float) -> float:
        """Return for how many seconds the devices have had no step.

        Args:
            since: the most of them, as a moment of `time.monotonic()`.
        """
        ends = [end for *_, end in self._pending]
        return idle_seconds(ends, self._last, since, time.monotonic())

    def sampled(self, step: int, phase: PhaseStep) -> None:
        """Write to the event log which blocks train from a step on, where they are sampled."""
        if phase.period is not None:
            self.events.of_kind(SAMPLING, step, choice_event(phase.period.choice))

    def say(self, step: int, event: str, message: str) -> None:
        """Write a note to the event log, and a message to the terminal."""
        self.events.note(step, event)
        self.progress.message(message)


def idle_seconds(ends: Sequence[Future[Ended]], last: float, since: float, now: float) -> float:
    """Return for how long the devices have had no step.

    Args:
        ends: the ends of the steps in flight, oldest first.
        last: when the last step before these ended.
        since: the moment that idle time counts from.
        now: the moment that it counts to.
    """
    if not all(end.done() for end in ends):
        return 0.0
    return max(0.0, now - max(since, ends[-1].result().wall if ends else last))


def taken(pending: deque[T], most: int) -> Iterator[T]:
    """Remove and yield the entries of a queue, oldest first, until `most` are left."""
    while len(pending) > most:
        yield pending.popleft()


def earlier_events(run: RunFolder) -> list[dict[str, Any]]:
    """Read the events of a resumed run; every process gets the same."""
    return from_first(lambda: read_events(run.path) if run.resumed else [])


def find_trackers(
    run: RunFolder, config: Config, warn: Callable[[str], None]
) -> AbstractContextManager[list[Tracker]]:
    """Open the trackers of a run in the first process; a resumed run keeps its identity."""
    started = f"{config.run.name} {run.read_json(RUN_FILE)['started']}"
    about = {
        "name": config.run.name,
        "id": hashlib.sha256(started.encode()).hexdigest()[:16],
        "dir": str(run.path),
        "resumed": run.resumed,
    }
    names = config.run.trackers if is_first() else ()
    return open_trackers(names, about, config.dump(), warn)


def log_result(trackers: Sequence[Tracker], result: dict[str, Any]) -> None:
    """Send the final scores and their step to the trackers."""
    scores = {f"result/{name}": value for name, value in result["metrics"].items()}
    for tracker in trackers:
        tracker.log(None, {**scores, "result/step": result["step"]})
