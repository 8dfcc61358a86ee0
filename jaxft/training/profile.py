"""Profile of some steps, for XProf."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Self

import jax

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
