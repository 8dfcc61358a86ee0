"""Damaged or unwritable checkpoint files, reported in one plain sentence."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from typing import TypeVar

import jax
from etils import epath

from jaxft.errors import UserError

Read = TypeVar("Read")


class DamagedError(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


def attempt(read: Callable[[], Read], problem: str) -> Read:
    """Call `read`; raise one error for the dozen types that Orbax raises for damage."""
    try:
        return read()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # not the checkpoint's fault
    except Exception:
        logging.getLogger(__name__).debug(problem, exc_info=True)
    raise DamagedError(problem)


def attempt_restore(read: Callable[[], Read], problem: str) -> Read:
    """Call `read`, which restores arrays with Orbax, as `attempt` does."""
    try:
        return attempt(read, problem)
    except DamagedError:
        gc.collect()  # the coroutines that Orbax leaves are finalized here, where it is expected
        raise


def save_failure(folder: epath.Path, error: Exception, complete: list[int]) -> UserError:
    """Describe a failed save: why, and what is still there."""
    return UserError(
        f"A checkpoint could not be saved in {folder}: {_reason(error)}.",
        f"Complete checkpoints there: {', '.join(map(str, complete)) or 'none'}.",
    )


def _reason(error: Exception) -> str:
    """TensorStore wraps `No space left on device` in a paragraph of paths."""
    system = re.search(r"([^:]+) \[os_error_code", str(error))
    return system[1].strip() if system else str(error).rstrip(".")
