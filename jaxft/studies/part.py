"""Part of a study: members that share a program and fit into memory together."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.setup import Setup
from jaxft.engine.state import TrainState
from jaxft.report.events import EventLog
from jaxft.report.terminal.progress import Progress
from jaxft.studies.members import Member
from jaxft.studies.program.phase import Programs, Stage, begin, enter, phases_of
from jaxft.studies.program.state import Start, drift, select_members
from jaxft.studies.saved_states import SavedStates
from jaxft.training.batches import training_batches
from jaxft.training.log import IN_FLIGHT, taken
from jaxft.training.metadata import phase_line
from jaxft.training.meter import Clock, Ended, Pace

SAVE_SECONDS = 300.0  # between saves of the states, at evaluations


@dataclass(frozen=True)
class Part:
    """Members that train together, from one step to another.

    Attributes:
        index: number of the part in the study, from 0.
        bucket: number of its bucket, from 0.
        members: its members.
        setups: one per member, of the same task, model, data and mesh.
        first: the step that it starts after.
        stop: its last step.
        source: the part whose members' states it starts from; None for the checkpoint.
    """

    index: int
    bucket: int
    members: tuple[Member, ...]
    setups: tuple[Setup, ...]
    first: int
    stop: int
    source: Part | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of each member in this part."""
        return self.stop - self.first

    @property
    def is_last(self) -> bool:
        """Return whether its members have been trained when it ends."""
        return self.stop == self.setups[0].length.total_steps


def train_part(
    part: Part,
    programs: Programs,
    saved: SavedStates,
    log: EventLog,
    progress: Progress,
    done: int,
) -> dict[str, Any]:
    """Train the members of a part, from where an earlier start of it was saved.

    Args:
        part: the part.
        programs: of the part's bucket.
        saved: the saved states of the study's parts.
        log: receives loss curves and scores.
        progress: the progress bar of the whole study.
        done: steps of earlier parts.

    Returns:
        `rows`, one per member and evaluation; `test`, each member's final scores on the test
        rows, empty without such rows or if the part is not the last; `drift` by depth;
        `diverged`, the step at which each diverged member stopped; `seconds`, and of these
        `compiling`.
    """
    training = _Training(part, programs, saved, log, progress, done)
    progress.doing("compiling the step")
    setup = training.setup
    collate = setup.splits["train"].examples.collate
    for batch in training_batches(setup, collate, training.step, part.stop):
        training.advance(batch)
        ended = not training.meter.alive.any()
        if ended or training.step == part.stop or setup.length.evaluates_at(training.step):
            training.score()
            training.save(always=training.step == part.stop and not part.is_last)
        if ended:
            break
    return training.result()


class _Training:
    """Training of a part: its states, scores and curves.

    Args:
        part, programs, saved, log, progress, done: see `train_part`.

    Attributes:
        setup: any member's.
        step: updates done so far.
        meter: the metrics of the steps.
    """

    def __init__(
        self,
        part: Part,
        programs: Programs,
        saved: SavedStates,
        log: EventLog,
        progress: Progress,
        done: int,
    ):
        self._part, self._programs, self._saved = part, programs, saved
        self._log, self._progress = log, progress
        self._began, self._compiling, self._elapsed = time.monotonic(), 0.0, 0.0
        self._rows: list[dict[str, Any]] = []
        self.step, diverged = part.first, {}
        self.setup = part.setups[0]
        if (earlier := saved.record(part.index)) is not None:
            self.step, self._rows = earlier["step"], earlier["rows"]
            diverged = {int(member): at for member, at in earlier["diverged"].items()}
            self._compiling, self._elapsed = earlier["compiling"], earlier["seconds"]
        self._stage, self._states, self._start = _open(part, self.step, programs, saved)
        self.meter = _Meter(part, log, progress, done - part.first, diverged)
        self._pending: deque[tuple[int, dict[str, jax.Array], Future[Ended]]] = deque()
        self._first, self._last_save = self.step, time.monotonic()

    def advance(self, batch: Mapping[str, np.ndarray]) -> None:
        """Train one step."""
        if self._stage.is_over(self.step):
            self._read(most=0)
            self._stage, self._states = self._stage.next(self._states, self._programs)
            self.meter.pace.interrupt()
            phases = len(self.setup.phases)
            self._progress.message(phase_line(self._stage.now.phase, phases))
        stage = self._stage
        placed = place_batch(batch, batch_sharding(self.setup.mesh))
        started, compiles = time.monotonic(), self.step in (self._first, stage.now.phase.start)
        inputs = stage.inputs(self.step)
        self._states, metrics = stage.step(self._states, stage.frozen, placed, inputs)
        self._compiling += time.monotonic() - started if compiles else 0.0
        self.step += 1
        self._pending.append((self.step, metrics, self.meter.clock.ends(metrics["loss"])))
        self._read(most=IN_FLIGHT)

    def score(self) -> None:
        """Score every member on the eval rows."""
        self._read(most=0)
        self._progress.doing(f"scoring {len(self.setup.splits['eval'].examples):,} eval rows")
        with self.meter.clock.paused():
            member_scores = self._stage.score(self._states)
        for member, scores in zip(self._part.members, member_scores, strict=True):
            self._log.eval(self.step, "eval", {"member": member.index, **scores})
            self._rows.append(_row(member, self._part.bucket, self.step, scores))

    def save(self, *, always: bool) -> None:
        """Save the states if that is due; `always` also waits for them to be written."""
        if always or time.monotonic() - self._last_save >= SAVE_SECONDS:
            self._progress.doing("saving the states")
            with self.meter.clock.paused():
                self._saved.save(self._part.index, self.step, self._states, self._record())
                if always:
                    self._saved.wait(self._part.index)
            self._last_save = time.monotonic()

    def result(self) -> dict[str, Any]:
        """Score the test rows, measure the drift, and return what `train_part` does."""
        self.meter.clock.close()
        tested: list[dict[str, float | None]] = []
        if "test" in self.setup.splits and self._part.is_last:
            self._progress.doing(f"scoring {len(self.setup.splits['test'].examples):,} test rows")
            tested = [_finite(scores) for scores in self._stage.score(self._states, "test")]
        return {
            "part": self._part.index,
            "bucket": self._part.bucket,
            "members": [member.index for member in self._part.members],
            **self._record(),
            "test": tested,
            "drift": drift(self.setup, self._states, self._start),
            "examples_per_second": self.meter.examples_per_second,
        }

    def _record(self) -> dict[str, Any]:
        """Return what a later start of the part goes on with, beside the states."""
        return {
            "step": self.step,
            "rows": self._rows,
            "diverged": self.meter.diverged,
            "seconds": self._elapsed + time.monotonic() - self._began,
            "compiling": self._compiling,
        }

    def _read(self, most: int) -> None:
        """Read the metrics of steps until `most` of them are in flight."""
        limit = self.setup.config.train.max_bad_steps
        for number, metrics, ended in taken(self._pending, most):
            self.meter.add(number, jax.device_get(metrics), limit, ended.result())


def _open(
    part: Part, step: int, programs: Programs, saved: SavedStates
) -> tuple[Stage, TrainState, Start]:
    """Make the stage and the states of a part that has come to a step."""
    source = part if saved.record(part.index) is not None else part.source
    if source is None:
        return begin(part.setups, phases_of(part.setups, 0), programs)
    if source is part:
        stage, states, start = enter(part.setups, step, programs)
        return stage, saved.restore(part.index, states), start
    states = saved.restore(source.index, enter(source.setups, step, Programs())[1])
    stage, _, start = enter(part.setups, step, programs)
    indices = [source.members.index(member) for member in part.members]
    return stage, select_members(stage.setup, states, indices), start


def _row(member: Member, bucket: int, step: int, scores: dict[str, float]) -> dict[str, Any]:
    return {"member": member.index, "bucket": bucket, "step": step, "scores": _finite(scores)}


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


class _Meter:
    """Metrics of a part's steps: each member's loss, who is alive, and the throughput."""

    def __init__(
        self, part: Part, log: EventLog, progress: Progress, done: int, diverged: Mapping[int, int]
    ):
        self._part, self._log, self._progress, self._done = part, log, progress, done
        self._setup = part.setups[0]
        self.alive = np.array([member.index not in diverged for member in part.members])
        self.diverged = dict(diverged)
        self.pace, self.examples_per_second = Pace(), 0.0
        self._sums = np.zeros(len(part.members))
        self._weights = np.zeros(len(part.members))
        self.clock = Clock()

    def add(self, step: int, metrics: dict[str, np.ndarray], limit: int, ended: Ended) -> None:
        """Add one step's metrics, `[K]` each."""
        index = self._setup.plan.batch(step - 1)
        self.pace.add(ended.active, examples=float((index >= 0).sum()))
        finite = metrics["bad_steps"] == 0
        weight = np.where(finite, metrics["weight"], 0.0)
        self._sums += np.where(finite, metrics["loss"] * weight, 0.0)
        self._weights += weight
        for row in np.flatnonzero(self.alive & (metrics["bad_steps"] >= limit)):
            member = self._part.members[row].index
            self.alive[row] = False
            self.diverged[member] = step
            note = f"Member {member} diverged: it keeps its state of {limit} steps ago."
            self._log.note(step, note)
            self._progress.message(note)
        every = self._setup.config.train.log_every
        event = None
        if step % every == 0 or step == self._part.stop:
            event = self._event(step)
        self._progress.update(self._done + step, event, ended.wall)

    def _event(self, step: int) -> dict[str, Any]:
        with np.errstate(invalid="ignore", divide="ignore"):
            losses = self._sums / self._weights
        for member, loss in zip(self._part.members, losses, strict=True):
            if math.isfinite(loss):
                self._log.train(step, {"member": member.index, "loss": loss})
        rates = {f"{name}_per_second": rate for name, rate in self.pace.rates().items()}
        self.examples_per_second = rates.get("examples_per_second", self.examples_per_second)
        alive = f"{self.alive.sum()} of {len(self.alive)} members"
        self._progress.heading(f"program {self._part.bucket + 1}, {alive}")
        finite = [loss for loss in losses if math.isfinite(loss)]
        self._sums[:], self._weights[:] = 0.0, 0.0
        if not finite:
            return rates
        return {"loss": float(np.mean(finite)), "best": float(np.min(finite)), **rates}
