"""Settings of the whole process: the command line makes them, and no function of the library does.

Those of jax and the allocator wait until a command computes, since importing jax takes seconds.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import absl.logging

# Others write into the same folders of a bucket (TensorStore, other hosts), which a cached listing
# would not show. fsspec reads these when it is imported.
UNCACHED = '{"use_listings_cache": false}'
ORBAX = "/orbax/checkpoint/"
LOOP_CLOSED = "Event loop is closed"


def prepare_command_line(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have logs and buckets as a command wants them, before anything else is imported.

    Args:
        environ: the process's environment.
    """
    for kind in ("FSSPEC_GS", "FSSPEC_GCS"):
        environ.setdefault(kind, UNCACHED)
    # It logs pages of tracebacks, and raises the last error, which is reported.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    quiet_orbax()


def prepare_computation() -> None:
    """Set the compile cache and the allocator, as a command that computes begins with."""
    from jaxft.device.process import prepare_process

    prepare_process()


def quiet_orbax() -> None:
    """Leave out what Orbax logs and leaves behind where jaxft reports the error itself."""
    # absl's own logger: one that is made before absl's would not know which file logs.
    absl.logging.get_absl_logger().addFilter(not_from_orbax)
    logging.getLogger("asyncio").addFilter(not_about_orbax)
    sys.unraisablehook = partial(report_unraisable, report=sys.unraisablehook)


def not_from_orbax(record: logging.LogRecord) -> bool:
    """Leave out tracebacks that Orbax logs of what it then raises: the error is reported once."""
    return ORBAX not in record.pathname


def not_about_orbax(record: logging.LogRecord) -> bool:
    """Leave out tracebacks of the other reads of a checkpoint, of which one failed."""
    return ORBAX not in record.getMessage()


def report_unraisable(unraisable: Any, report: Callable[[Any], Any]) -> None:
    """Report what a finalizer raised, but for what is left of a checkpoint read that failed.

    Such a read is reported once, as an error. Orbax leaves coroutines of it behind, and closes its
    event loop while TensorStore's other reads have yet to end, which then call into it.
    """
    owner, error = unraisable.object, unraisable.exc_value
    coroutine = inspect.iscoroutine(owner) and ORBAX in owner.cr_code.co_filename
    late = isinstance(error, RuntimeError) and str(error) == LOOP_CLOSED
    if not (coroutine or late):
        report(unraisable)
