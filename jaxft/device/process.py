"""Set-up of a training process, before jax compiles or allocates anything."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxft.device.distributed import processes
from jaxft.storage.files import cache_dir

# glibc's `mallopt` parameters (malloc.h).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


def prepare_process() -> None:
    """Keep compiled programs for the next run, and freed memory for the next step.

    jax's own variables go first: `JAX_COMPILATION_CACHE_DIR` may be a folder in a bucket, which
    serves every host of a pod and those that come in its place.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = cache_dir() / "programs"
        folder.mkdir(mode=0o700, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # The default of a second leaves out most of what a small model compiles on CPU.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed memory back to the system; does nothing elsewhere.

    XLA on CPU frees a step's temporaries at its end and asks for them again: 318 MB and 78,000
    page faults a step of MiniLM, 14% of the CPU time. The process then stays as large as it was
    at its largest, until `return_freed_memory`.

    Returns:
        Whether it took effect.
    """
    mallopt = _glibc("mallopt")
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)


def return_freed_memory() -> None:
    """Hand what is free in glibc's heap back to the system; does nothing elsewhere.

    For the end of what takes much memory, and seldom: the next step's page faults are its cost.
    """
    if trim := _glibc("malloc_trim"):
        trim(ctypes.c_size_t(0))


def _glibc(name: str) -> Callable[..., int] | None:
    """Return a function of glibc, where that is the C library."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


class Stop:
    """Signal that asked the run to end, if any.

    Args:
        together: several processes train, and a signal to one is for all.
    """

    def __init__(self, together: bool = False) -> None:
        self.signal: int | None = None
        self._together = together
        self._asked = 0

    def asked(self) -> bool:
        """Return whether a signal came; processes of one run all have to ask equally often."""
        self._asked += 1
        # jax's service carries the notice, and chooses a question that none has come to yet.
        if self._together and multihost_utils.reached_preemption_sync_point(self._asked):
            self.signal = signal.SIGTERM
        return self.signal is not None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one ends at once.

    Python runs handlers in the main thread only: elsewhere nothing is noted. Of several processes
    each has jax's own handler of SIGTERM.
    """
    if processes() > 1:
        yield Stop(together=True)
        return
    stop = Stop()

    def note(number: int, frame: object) -> None:
        del frame
        stop.signal = number
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment() -> dict[str, Any]:
    """The versions, devices and machine of this process, as `run.json` records them."""
    packages = ["jaxft", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"]
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = jax.devices()[0]
    return {
        "versions": {**versions, "python": platform.python_version()},
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "host": socket.gethostname(),
        "system": platform.platform(),
    }
