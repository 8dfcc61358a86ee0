"""Metrics of training between log lines: means, throughput, best score and patience."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxft.engine.setup import Setup
from jaxft.training.phase import PhaseStep
from jaxft.training.utilisation import Work


class Clock:
    """Clock of training time, without the time of evaluations and saves."""

    def __init__(self) -> None:
        self._seconds, self._since = 0.0, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for a block."""
        self._seconds += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the last lap, more than 0, and start the next."""
        now = time.monotonic()
        seconds = max(self._seconds + now - self._since, 1e-9)
        self._seconds, self._since = 0.0, now
        return seconds


class Meter:
    """Means and throughput of steps, as one event every `log_every` steps.

    Attributes:
        clock: the time that throughput is measured by.
        finite: whether the last step read was finite.
    """

    def __init__(self, setup: Setup):
        self.clock, self.finite = Clock(), True
        self._setup = setup
        self._work = Work(0, None)
        self._sums: dict[str, float] = {}
        self._weight = self._examples = self._tokens = self._flops = 0.0

    def add(
        self, phase: PhaseStep, step: int, metrics: Mapping[str, float]
    ) -> dict[str, Any] | None:
        """Add one step's metrics.

        Args:
            phase: the phase that the step was in.
            step: steps done, this one included.
            metrics: what the train step gave, on the host.

        Returns:
            The event for `EventLog.train` where a line is due, else None.
        """
        self.finite = metrics["bad_steps"] == 0
        index = self._setup.plan.batch(step - 1)
        real = index[index >= 0]
        self._examples += len(real)
        self._tokens += float(self._setup.splits["train"].examples.lengths[real].sum())
        self._flops += self._work.flops
        if self.finite:
            self._weight += metrics["weight"]
            for name, value in metrics.items():
                if name not in ("weight", "bad_steps"):
                    self._sums[name] = self._sums.get(name, 0.0) + value * metrics["weight"]
        every = self._setup.config.train.log_every
        if step % every and step != self._setup.length.total_steps:
            return None
        event = self._event(phase, step)
        self._sums, self._weight = {}, 0.0
        self._examples = self._tokens = self._flops = 0.0
        return event

    def works(self, work: Work) -> None:
        """Set the work of each following step."""
        self._work = work

    def _event(self, phase: PhaseStep, step: int) -> dict[str, Any]:
        seconds = self.clock.lap()
        means = {name: total / self._weight for name, total in self._sums.items()}
        clip, norm = self._setup.config.optimizer.clip, means.get("grad_norm")
        if clip is not None and norm:
            means["clip"] = min(1.0, clip / norm)
        return {
            "epoch": self._setup.plan.epoch_of(step),
            **means,
            "examples_per_second": self._examples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "flops_per_second": self._flops / seconds,
            **self._utilisation(seconds),
            "rates": phase.fastest(step - 1),
        }

    def _utilisation(self, seconds: float) -> dict[str, float]:
        """Compute the share of the chips' peak that is used, where the chips are known."""
        peak = self._work.peak
        return {} if peak is None else {"mfu": self._flops / seconds / peak}


def scores_before(events: Iterable[Mapping[str, Any]], metric: str) -> list[float | None]:
    """List the metric at each evaluation in the event log, in order."""
    return [event.get(metric) for event in events if event.get("split") == "eval"]


def is_best(score: float, before: Sequence[float | None], *, lower_is_better: bool) -> bool:
    """Return whether no earlier score is better; ties go to the later, as in `Checkpoints`."""
    return math.isfinite(score) and not any(
        _better(value, score, lower_is_better) for value in before
    )


def patience_is_over(
    scores: Sequence[float | None], patience: int | None, *, lower_is_better: bool
) -> bool:
    """Return whether none of the last `patience` scores is better than all before it."""
    if patience is None or len(scores) <= patience:
        return False
    early, late = scores[:-patience], scores[-patience:]
    return not any(all(_better(value, other, lower_is_better) for other in early) for value in late)


def _better(one: float | None, other: float | None, lower_is_better: bool) -> bool:
    """Return whether `one` is better than `other`."""
    if one is None or not math.isfinite(one):
        return False
    if other is None or not math.isfinite(other):
        return True
    return one < other if lower_is_better else one > other
