"""A trace of some steps, for XProf."""

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
    """The first step and the last of `10:20`, counted from 1.

    Raises:
        UserError: it is not two such numbers.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 0 < first <= last:
        raise UserError(
            f"--profile is the first step and the last, counted from 1, not '{text}'.",
            "Such as 10:20.",
        )
    return first, last


class Profile:
    """Traces some steps of a run, in the first process.

    Args:
        run: the run folder; the trace goes to `profile` in it.
        steps: the first and the last; None for none.
    """

    def __init__(self, run: Path, steps: tuple[int, int] | None):
        self._folder, self._steps = run / FOLDER, steps if is_first() else None
        self._traces: LocalFolder | None = None

    def before(self, step: int, state: Any) -> None:
        """Begin or end the trace where it is time to.

        Args:
            step: steps begun.
            state: what the last of them makes; waited for, so that the trace holds whole steps.
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
        """End the trace, if one is under way."""
        if self._traces:
            local, self._traces, self._steps = self._traces, None, None
            jax.profiler.stop_trace()
            local.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(RuntimeError):  # what went wrong before is told
            self.close()
