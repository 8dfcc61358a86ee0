"""Part of a study: members that share a program and fit into memory together."""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine.setup import Setup
from jaxft.report.events import EventLog
from jaxft.report.terminal.progress import Progress
from jaxft.studies.members import Member
from jaxft.studies.phase import Programs, begin, phases_of
from jaxft.studies.state import drift
from jaxft.training.batches import training_batches
from jaxft.training.log import IN_FLIGHT, taken
from jaxft.training.metadata import phase_line
from jaxft.training.meter import Clock, Ended, Pace


@dataclass(frozen=True)
class Part:
    """Members that train together.

    Attributes:
        index: number of the part in the study, from 0.
        bucket: number of its bucket, from 0.
        members: its members.
        setups: one per member, of the same task, model, data and mesh.
    """

    index: int
    bucket: int
    members: tuple[Member, ...]
    setups: tuple[Setup, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps of each member."""
        return self.setups[0].length.total_steps


def train_part(
    part: Part, programs: Programs, log: EventLog, progress: Progress, done: int
) -> dict[str, Any]:
    """Train the members of a part.

    Args:
        part: the part.
        programs: of the part's bucket.
        log: receives loss curves and scores.
        progress: the progress bar of the whole study.
        done: steps of earlier parts.

    Returns:
        `rows`, one per member and evaluation; `test`, each member's final scores on the test
        rows, empty without such rows; `drift` by depth; `diverged`, the step at which each
        diverged member stopped; `seconds`, and of these `compiling`.
    """
    began = time.monotonic()
    stage, states, start = begin(part.setups, phases_of(part.setups, 0), programs)
    setup, total = stage.setup, part.steps
    limit = setup.config.train.max_bad_steps
    meter = _Meter(part, log, progress, done)
    pending: deque[tuple[int, dict[str, jax.Array], Future[Ended]]] = deque()
    rows: list[dict[str, Any]] = []
    step, compiling = 0, 0.0

    def read(most: int) -> None:
        for number, metrics, ended in taken(pending, most):
            meter.add(number, jax.device_get(metrics), limit, ended.result())

    progress.doing("compiling the step")
    collate = setup.splits["train"].examples.collate
    for batch in training_batches(setup, collate, 0, total):
        if stage.is_over(step):
            read(most=0)
            stage, states = stage.next(states, programs)
            meter.pace.interrupt()
            progress.message(phase_line(stage.now.phase, len(setup.phases)))
        placed = place_batch(batch, batch_sharding(setup.mesh))
        started = time.monotonic()
        states, metrics = stage.step(states, stage.frozen, placed, stage.inputs(step))
        compiling += time.monotonic() - started if step == stage.now.phase.start else 0.0
        step += 1
        pending.append((step, metrics, meter.clock.ends(metrics["loss"])))
        read(most=IN_FLIGHT)
        ended = not meter.alive.any()
        if not ended and not setup.length.evaluates_at(step):
            continue
        read(most=0)
        progress.doing(f"scoring {len(setup.splits['eval'].examples):,} eval rows")
        with meter.clock.paused():
            member_scores = stage.score(states)
        for member, scores in zip(part.members, member_scores, strict=True):
            log.eval(step, "eval", {"member": member.index, **scores})
            rows.append(_row(member, part.bucket, step, scores))
        if ended:
            break
    meter.clock.close()
    tested: list[dict[str, float | None]] = []
    if "test" in setup.splits:
        progress.doing(f"scoring {len(setup.splits['test'].examples):,} test rows")
        tested = [_finite(scores) for scores in stage.score(states, "test")]
    moved = drift(setup, states, start)
    return {
        "part": part.index,
        "bucket": part.bucket,
        "members": [member.index for member in part.members],
        "rows": rows,
        "test": tested,
        "drift": moved,
        "diverged": meter.diverged,
        "seconds": time.monotonic() - began,
        "compiling": compiling,
        "examples_per_second": meter.examples_per_second,
    }


def _row(member: Member, bucket: int, step: int, scores: dict[str, float]) -> dict[str, Any]:
    return {"member": member.index, "bucket": bucket, "step": step, "scores": _finite(scores)}


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


class _Meter:
    """Metrics of a part's steps: each member's loss, who is alive, and the throughput."""

    def __init__(self, part: Part, log: EventLog, progress: Progress, done: int):
        self._part, self._log, self._progress, self._done = part, log, progress, done
        self._setup = part.setups[0]
        self.alive = np.ones(len(part.members), bool)
        self.diverged: dict[int, int] = {}
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
        if step % every == 0 or step == self._part.steps:
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
