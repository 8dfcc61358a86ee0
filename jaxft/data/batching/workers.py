"""Batches from data workers: one that died ends the run, one that does not answer is reported."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from jaxft.errors import UserError
from jaxft.storage.waiting import Watch, to_stderr

T = TypeVar("T")

SECONDS = 60.0  # without a batch
# Of the error that Grain raises when one of its processes is gone.
ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")


def watched(
    batches: Iterator[T], seconds: float = SECONDS, report: Callable[[str], None] = to_stderr
) -> Iterator[T]:
    """Yield the batches that data workers make.

    Args:
        batches: Grain's iterator.
        seconds: without a batch, after which the workers are reported; the wait goes on.
        report: receives that sentence.

    Raises:
        UserError: a worker died.
    """
    with Watch(report) as watch:
        while True:
            watch.expect(seconds, lambda: _waiting(seconds))
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                match = ENDED.search(str(error))
                if match is None:
                    raise
                raise _died(int(match[1])) from None
            finally:
                watch.arrived()
            yield batch


def _waiting(seconds: float) -> str:
    """Describe the workers of this process, of which one has not answered."""
    workers = [(child.pid, state(child.pid)) for child in multiprocessing.active_children()]
    listed = ", ".join(f"{pid}{state}" for pid, state in workers) or "none"
    return (
        f"waiting for a batch from the data workers for {seconds:.0f} s (processes: {listed}). "
        "A worker that is killed ends the run, which --resume continues."
    )


def state(process: int | None) -> str:
    """Return ` (stopped)` of a process that a signal has stopped, as far as the system tells."""
    status = Path(f"/proc/{process}/stat")
    if not status.exists():
        return ""
    return " (stopped)" if status.read_text().rpartition(")")[2].split()[0] in "Tt" else ""


def _died(code: int) -> UserError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return UserError(
        f"A data worker {how}.",
        "The system kills workers when memory runs out: lower data.workers or data.prefetch. "
        "--resume continues from the last checkpoint.",
    )
