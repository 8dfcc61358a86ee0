"""Metrics of training between log lines: means, throughput, best score and patience."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax

from jaxft.engine.setup import Setup
from jaxft.storage.waiting import Watch
from jaxft.training.noise import TERMS, NoiseScale
from jaxft.training.phase import PhaseStep
from jaxft.training.utilisation import Work

# A step is slow from so many times the median on; one of milliseconds may well wait that often.
TIMES, LEAST_SECONDS = 20, 10.0
FEWEST, MOST = 20, 200  # steps that the median is of


class Ended(NamedTuple):
    """Moment at which a step ended on the devices.

    Attributes:
        active: seconds of training, without evaluations and saves.
        wall: `time.monotonic()`.
    """

    active: float
    wall: float


class Clock:
    """Clock of training time, without the time of evaluations and saves.

    A step is read some steps after it was started, so that the time at which it is read says
    nothing of the time that it took. A thread waits for the end of each step in order.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = time.monotonic()
        self._steps: SimpleQueue[tuple[Any, Future[Ended]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a block."""
        self._seconds, self._since = self._active(), None
        yield
        self._since = time.monotonic()

    @property
    def is_paused(self) -> bool:
        """Return whether an evaluation, a save or a compilation runs."""
        return self._since is None

    def ends(self, result: Any) -> Future[Ended]:
        """Return the moment at which an array that a step computes is there.

        Args:
            result: any result of the step; steps are given in order.
        """
        if self._thread is None:
            # A daemon: devices that never answer must not keep the process alive.
            self._thread = threading.Thread(target=self._watch, name="step-clock", daemon=True)
            self._thread.start()
        ended: Future[Ended] = Future()
        self._steps.put((result, ended))
        return ended

    def close(self) -> None:
        """Let the thread end after the steps that it was given."""
        self._steps.put(None)

    def _active(self) -> float:
        since = self._since
        return self._seconds + (0.0 if since is None else time.monotonic() - since)

    def _watch(self) -> None:
        while (item := self._steps.get()) is not None:
            result, ended = item
            with suppress(Exception):  # whoever reads the step's metrics gets its error
                jax.block_until_ready(result)
            ended.set_result(Ended(self._active(), time.monotonic()))


class Pace:
    """Work of the steps of a window, over the time in which they ran.

    The first step after a program was compiled has no known beginning and is left out, so a
    window with no other step has no rates.
    """

    def __init__(self) -> None:
        self._previous: float | None = None
        self._seconds = 0.0
        self._work: dict[str, float] = {}

    def interrupt(self) -> None:
        """Leave the next step out: a program is compiled before it, or a run begins with it."""
        self._previous = None

    def add(self, ended: float, **work: float) -> None:
        """Add a step.

        Args:
            ended: active seconds at its end.
            work: its examples, tokens and so on.
        """
        if self._previous is not None:
            self._seconds += ended - self._previous
            self._work = {name: self._work.get(name, 0.0) + one for name, one in work.items()}
        self._previous = ended

    def rates(self) -> dict[str, float]:
        """Return the window's work per second, empty where no step was timed; begin the next."""
        rates = {name: one / self._seconds for name, one in self._work.items() if self._seconds > 0}
        self._seconds, self._work = 0.0, {}
        return rates


class SlowSteps:
    """Watch over the times of steps; the first slow one is reported, and only that.

    Args:
        clock: the clock of training, which does not run during evaluations and saves.
        watch: reports the step while it runs: it may never end.
    """

    def __init__(self, clock: Clock, watch: Watch):
        self._clock, self._watch = clock, watch
        self._phase, self._previous = -1, 0.0
        self._seconds: deque[float] = deque(maxlen=MOST)
        self._reported = False

    def add(self, step: int, phase: int, ended: float) -> str | None:
        """Add a step that has ended, and begin to wait for the next.

        Args:
            step: steps done, this one included.
            phase: its phase, whose first step waits for a compilation and is left out.
            ended: seconds of training at its end.

        Returns:
            A sentence on the step, if it is the first slow one.
        """
        seconds, sentence = ended - self._previous, None
        if phase != self._phase:
            self._seconds.clear()
        elif self._is_slow(seconds):
            self._reported = True
            sentence = f"Step {step:,} took {seconds:.0f} s; {self._usual()}."
        else:
            self._seconds.append(seconds)
        self._phase, self._previous = phase, ended
        if len(self._seconds) >= FEWEST and not self._reported:
            self._watch.expect(self._limit(), lambda: self._late(step + 1))
        else:
            self._watch.arrived()
        return sentence

    def _is_slow(self, seconds: float) -> bool:
        return len(self._seconds) >= FEWEST and not self._reported and seconds > self._limit()

    def _limit(self) -> float:
        return max(TIMES * statistics.median(self._seconds), LEAST_SECONDS)

    def _late(self, step: int) -> str | None:
        if self._clock.is_paused:
            return None
        return (
            f"step {step:,} has not ended for {self._limit():.0f} s; {self._usual()}. It goes on "
            "when the devices, the data and the other processes answer."
        )

    def _usual(self) -> str:
        return f"the median of the steps before is {statistics.median(self._seconds):.3g} s"


class Meter:
    """Means and throughput of steps, as one event every `log_every` steps.

    Attributes:
        clock: the time that throughput is measured by.
        finite: whether the last step read was finite.
        compiles: whether the next step is the first of its program.
        steps, flops: number and model FLOPs of all steps read.
        noise: the gradient noise scale, where steps have several micro-batches.
    """

    def __init__(self, setup: Setup):
        self.clock, self.finite, self.compiles = Clock(), True, False
        self.steps = self.flops = 0
        self.noise = NoiseScale()
        self._setup = setup
        self._work = Work(0, None)
        self._sums: dict[str, float] = {}
        self._weight, self._pace = 0.0, Pace()

    def add(
        self, phase: PhaseStep, step: int, metrics: Mapping[str, float], ended: float
    ) -> dict[str, Any] | None:
        """Add one step's metrics.

        Args:
            phase: the phase that the step was in.
            step: steps done, this one included.
            metrics: what the train step gave, on the host.
            ended: active seconds at the step's end.

        Returns:
            The event for `EventLog.train` where a line is due, else None.
        """
        self.finite = metrics["bad_steps"] == 0
        index = self._setup.plan.batch(step - 1)
        real = index[index >= 0]
        tokens = float(self._setup.splits["train"].examples.lengths[real].sum())
        flops = round(self._work.flops * self._setup.plan.share(step - 1))
        self.steps, self.flops = self.steps + 1, self.flops + flops
        self._pace.add(ended, examples=len(real), tokens=tokens, flops=flops)
        if self.finite:
            self.noise.add(metrics, len(real))
            self._weight += metrics["weight"]
            for name, value in metrics.items():
                if name not in ("weight", "bad_steps", *TERMS):
                    self._sums[name] = self._sums.get(name, 0.0) + value * metrics["weight"]
        every = self._setup.config.train.log_every
        if step % every and step != self._setup.length.total_steps:
            return None
        event = self._event(phase, step)
        self._sums, self._weight = {}, 0.0
        return event

    def works(self, work: Work) -> None:
        """Set the work of each following step, the first of which is compiled."""
        self._work, self.compiles = work, True
        self._pace.interrupt()

    @property
    def peak(self) -> float | None:
        """Return the FLOPs a second of all devices; None where the chip is not known."""
        return self._work.peak

    def _event(self, phase: PhaseStep, step: int) -> dict[str, Any]:
        means = {name: total / self._weight for name, total in self._sums.items()}
        clip, norm = self._setup.config.optimizer.clip, means.get("grad_norm")
        if clip is not None and norm:
            means["clip"] = min(1.0, clip / norm)
        rates = self._pace.rates()
        return {
            "epoch": self._setup.plan.epoch_of(step),
            **means,
            **{f"{name}_per_second": rate for name, rate in rates.items()},
            **self._utilisation(rates),
            **({"noise_scale": scale} if (scale := self.noise.scale) is not None else {}),
            "rates": phase.fastest(step - 1),
        }

    def _utilisation(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Compute the share of the chips' peak that is used, where chips and pace are known."""
        peak = self._work.peak
        return {} if peak is None or not rates else {"mfu": rates["flops"] / peak}
