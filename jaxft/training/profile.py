"""Stopwatch of a run's parts, and a trace of some steps for XProf."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax

from jaxft.analysis.time_use import COMPILE, EVALUATE, INPUT, SAVE, SET_UP, STEPS, TRUNK
from jaxft.device.distributed import is_first
from jaxft.errors import UserError
from jaxft.storage.buckets import LocalFolder

FOLDER = "profile"  # in the run folder


def parse_steps(text: str) -> tuple[int, int]:
    """Parse the first and the last step of `10:20`, counted from 1.

    Raises:
        UserError: the text is not two such numbers.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 0 < first <= last:
        raise UserError(
            f"--profile: '{text}' is not a first and a last step, counted from 1.",
            "Write them as 10:20.",
        )
    return first, last


def check_steps(steps: tuple[int, int] | None, total: int) -> None:
    """Raise a UserError for a trace that would begin after the run's last step."""
    if steps is not None and steps[0] > total:
        raise UserError(
            f"--profile: the run ends at step {total:,}, before step {steps[0]:,}.",
            "Name earlier steps.",
        )


class Profile:
    """Trace of some steps of a run, recorded by the first process.

    Args:
        run: the run folder; the trace is written to `profile` in it.
        steps: the first and the last; None for no trace.
    """

    def __init__(self, run: Path, steps: tuple[int, int] | None):
        self._folder, self._steps = run / FOLDER, steps if is_first() else None
        self._traces: LocalFolder | None = None

    def before(self, step: int, state: Any) -> None:
        """Start or stop the trace when it is time.

        Args:
            step: steps started.
            state: the result of the last one; waited for, so that the trace has whole steps.
        """
        if self._steps is None:
            return
        first, last = self._steps
        if self._traces and step >= last:
            jax.block_until_ready(state)
            self.close()
        elif not self._traces and first - 1 <= step < last:
            jax.block_until_ready(state)
            self._traces = LocalFolder(self._folder)
            jax.profiler.start_trace(self._traces.path)

    def close(self) -> None:
        """Stop the trace if it is running."""
        if self._traces:
            local, self._traces, self._steps = self._traces, None, None
            jax.profiler.stop_trace()
            local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RuntimeError):  # the error that ended the block is reported
            self.close()


class Times:
    """Stopwatch of a run; it starts with the first part, set-up."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds = dict.fromkeys((SET_UP, TRUNK, COMPILE, INPUT, EVALUATE, SAVE), 0.0)

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the time of a block as that of a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(part, time.monotonic() - began)

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self._seconds[part] += seconds

    def is_set_up(self) -> None:
        """End the first part."""
        self._seconds[SET_UP] = time.monotonic() - self._began

    def facts(self, steps: int, flops: int, peak: float | None) -> dict[str, Any]:
        """Return the times for `run.json`.

        Args:
            steps: those of this start of the run.
            flops: their model FLOPs, on all devices together.
            peak: bfloat16 FLOPs a second of all devices; None where the chip is not known.

        Returns:
            `seconds` by part, with `steps` for the rest, and the arguments.
        """
        total = time.monotonic() - self._began
        parts = self._seconds | {STEPS: max(0.0, total - sum(self._seconds.values()))}
        seconds = {name: round(value, 3) for name, value in parts.items()}
        return {"seconds": seconds, "steps": steps, "flops": flops, "peak": peak}
