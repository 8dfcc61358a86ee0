"""The loop of a run: its steps, and what is read, scored and saved between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax

from jaxft.device.process import Stop
from jaxft.engine.evaluate import EvalStep, Evaluation, Interrupted
from jaxft.engine.state import TrainState
from jaxft.report.events import EventLog
from jaxft.report.terminal.progress import Progress
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.folder import RunFolder
from jaxft.training.auto_freeze import decides_at
from jaxft.training.batches import Batches
from jaxft.training.evaluate import Evals
from jaxft.training.layers import Seen, decide_again, measure_again, see_layers, write_layers
from jaxft.training.metadata import phase_line
from jaxft.training.meter import Meter
from jaxft.training.phase import Ahead, Stage, next_stage
from jaxft.training.profile import Profile
from jaxft.training.result import not_finite
from jaxft.training.utilisation import work_of

# Steps under way while the host makes the next batch and reads the metrics of those before.
IN_FLIGHT = 2


@dataclass
class Loop:
    """A run under way.

    Attributes:
        stage: the phase that it is in.
        state: the state after the last step.
        run, checkpoints: its folder.
        log, progress: where it tells what it does.
        stop: whether a signal asks it to end.
        batches, ahead: the next batch and the compiled step.
        evals: its evaluations.
        trace: the steps to trace.
        flops: `cost.step_flops` of the phase in which the most parameters train.
        step: steps done.
    """

    stage: Stage
    state: TrainState
    run: RunFolder
    checkpoints: Checkpoints
    log: EventLog
    progress: Progress
    stop: Stop
    batches: Batches
    ahead: Ahead
    evals: Evals
    trace: Profile
    flops: Mapping[str, int]
    step: int = field(init=False)

    def __post_init__(self) -> None:
        self.step = int(self.state.step)
        self._meter = Meter(self.stage)
        self._pending: deque[tuple[int, dict[str, jax.Array], Seen]] = deque()

    def begin(self, eval_step: EvalStep) -> None:
        """Make the first batches, and score what a run starts from or one that goes on has missed.

        Args:
            eval_step: the evaluation of the whole model.
        """
        first, length = self.step, self.stage.setup.length
        missed = first and length.evaluates_at(first) and not self.checkpoints.metrics(first)
        if first < length.total_steps or missed:
            self._enter()
        if missed:  # a signal came while it was scored
            self._save(self._score())
            self._end_if_asked()
        if first == 0:
            self.evals.before(self.stage, self.state, eval_step)
        if first < length.total_steps:
            self.progress.doing("compiling the step")

    def go(self) -> None:
        """Train to the end of the run, or of its patience.

        Raises:
            UserError: the loss stayed not finite.
            SystemExit: 128 + the signal's number, after a signal and a save.
        """
        length, save_due, score_due = self.stage.setup.length, False, False
        while self.step < length.total_steps:
            if self.evals.patience_is_over():
                self.progress.message(f"{self.evals.metric} has not improved: stopped early")
                break
            self._choose_phase()
            self._take_step()
            save_due |= length.saves_at(self.step)
            score_due |= length.evaluates_at(self.step)
            if not save_due and not self.stop.asked():
                continue

            # A save waits for the step's verdict, so that a late NaN cannot push out good ones.
            self._read(most=0)
            if self._meter.finite or self.step == length.total_steps or self.stop.asked():
                self._pause(score=score_due)
                save_due = score_due = False
        self.checkpoints.wait()

    def _choose_phase(self) -> None:
        """Go on to the next phase where this one is over, as planned or as decided now."""
        if decides_at(self.stage.setup, self.step):
            self._read(most=0)
            self.stage = decide_again(self.stage, self.log, self.step)
        if self.stage.is_over(self.step):
            self._read(most=0)
            self.stage, self.state = next_stage(self.stage, self.state)
            self._meter.enter(self.stage)
            self.log.note(self.step, phase_line(self.stage.now.phase, len(self.stage.phases)))
            self.progress.message(phase_line(self.stage.now.phase, len(self.stage.phases)))
            self._enter()

    def _enter(self) -> None:
        """Go on in a phase, for whose batches its trunk may have to run first."""
        self._meter.pause()
        try:
            self.batches.enter(self.stage, self.state, self.step)
        except Interrupted:
            if self.step:
                self._save(None)
            self._end_if_asked()
        self._meter.works(
            work_of(
                self.stage.setup, self.stage.phases, self.stage.now, self.batches.cached, self.flops
            )
        )
        self._meter.go_on()

    def _take_step(self) -> None:
        """Start a step, and read what the steps before gave while it is under way."""
        stage = self.stage
        self.trace.before(self.step, self.state)
        batch = self.batches.next()
        run_step = self.ahead.step(stage, batch)
        rates = stage.rates(self.step)
        self.state, metrics = run_step(self.state, stage.frozen, batch, rates)
        self.step += 1
        seen = see_layers(stage, self.state, self.step, metrics)
        self._pending.append((self.step, metrics, seen))
        if stage.measures_at(self.step):
            self._read(most=0)
            if self._meter.finite:
                self.stage = measure_again(stage, self.log, self.step, seen)
                self._meter.enter(self.stage)
        self._read(most=IN_FLIGHT)

    def _read(self, most: int) -> None:
        """Read the metrics of all but the last `most` steps: those are over, or nearly."""
        while len(self._pending) > most:
            done, metrics, seen = self._pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            event = self._meter.add(done, values)
            if event:
                self.log.train(done, event)
            self.progress.update(done, event)
            if self.stage.looks_at(done) or not self._meter.finite:
                write_layers(self.log, self.stage, done, seen, values["grad_norm"])
            if not self._meter.finite:
                self.log.note(done, f"Not finite (loss {values['loss']}): the step was undone.")
                self.progress.message(f"step {done:,} was not finite and is undone")
            if values["bad_steps"] >= self.stage.setup.config.train.max_bad_steps:
                raise not_finite(self.run, self.checkpoints, done, int(values["bad_steps"]))

    def _pause(self, score: bool) -> None:
        """Between two steps: score the eval rows where that is due, save, and end if asked."""
        self._meter.pause()
        found = self._score() if score and not self.stop.asked() else None
        self._save(found)
        self._meter.go_on()
        self._end_if_asked()
        if self.checkpoints.latest() is not None:
            self.run.discard_old()

    def _score(self) -> Evaluation | None:
        return self.evals.score(self.stage, self.state, self.step, self.batches)

    def _save(self, found: Evaluation | None) -> None:
        self.log.keep()  # a run that goes on from here has told all that was before
        metrics = None if found is None else found.scores
        self.checkpoints.save(self.step, self.state, metrics=metrics)

    def _end_if_asked(self) -> None:
        """After a signal: end once the save is complete."""
        if not self.stop.asked():
            return
        self.checkpoints.wait()
        self.log.note(self.step, f"Stopped by a signal after step {self.step}.")
        self.progress.message(f"stopped and saved at step {self.step:,}; --resume goes on")
        self.run.update(state="stopped")
        raise SystemExit(128 + (self.stop.signal or 0))
