"""How jaxft measures time: interleaved pairs, the median, and a 90% interval.

Times on a shared machine are noisy, so A and B take turns and each turn gives one ratio. The
interval is that of the median by order statistics: it assumes nothing about the distribution.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np

RESULTS = Path(__file__).parent / "results.json"
LIBRARIES = ("jax", "flax", "optax", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Median:
    """A median and the ends of its 90% interval."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3f} (90%: {self.low:.3f} to {self.high:.3f}, {self.count} pairs)"


def median(values: Sequence[float]) -> Median:
    """The median of `values` with the narrowest order-statistic interval of at least 90%.

    Args:
        values: one figure a pair; with fewer than 5 the interval is their range.
    """
    ordered = sorted(values)
    count = len(ordered)
    rank = 0
    # P(median is outside [x_(k+1), x_(n-k)]) = 2 * P(Binomial(n, 1/2) <= k)
    while 2 * sum(math.comb(count, k) for k in range(rank + 2)) / 2**count <= 0.1:
        rank += 1
    middle = count // 2
    center = ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Median(center, ordered[rank], ordered[count - 1 - rank], count)


class CpuClock:
    """Knows afterwards how much CPU time this process had used at a moment.

    Wall time on a shared machine is mostly the neighbours'. CPU seconds (user and system, of all
    threads) are the process's own, though caches and memory are still shared.
    """

    INTERVAL = 0.05  # seconds between looks at the clocks

    def __enter__(self) -> Self:
        self._seen: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            self._seen.append((time.time(), time.process_time()))
            if self._over.wait(self.INTERVAL):
                return

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._seen.append((time.time(), time.process_time()))

    def between(self, start: float, end: float) -> float:
        """CPU seconds from one `time.time()` to another."""
        times, used = zip(*self._seen, strict=True)
        first, last = np.interp([start, end], times, used)
        return float(last - first)


def run_apart(name: str, *words: str) -> dict[str, Any]:
    """The JSON that a benchmark prints last, run in a process of its own.

    Args:
        name: of the module in `benchmarks/`.
        words: its arguments.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def record(name: str, result: Mapping[str, Any]) -> None:
    """Write a result into `benchmarks/results.json` under `name`, with where it was measured."""
    results = _results()
    results[name] = {
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {library: version(library) for library in LIBRARIES},
        **result,
    }
    aside = RESULTS.with_suffix(".tmp")
    aside.write_text(json.dumps(results, indent=2) + "\n")
    aside.replace(RESULTS)


def recorded(name: str) -> dict[str, Any] | None:
    """What `record` wrote last under `name`, or None."""
    return _results().get(name)


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
