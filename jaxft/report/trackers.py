"""A run's numbers in Weights & Biases or Trackio, where its config asks for it.

`metrics.jsonl` stays the truth. A tracker has a thread of its own, so that a slow network slows no
step; one that fails is told once and left.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxft.errors import UserError

PROJECT = "jaxft"
WAITING = 10_000  # events that may wait for a tracker; what is more is not sent
LAST_SECONDS = 60.0  # how long a run that is over waits for a tracker
TITLES = {"wandb": "Weights & Biases", "trackio": "Trackio"}
# Quiet, and without the hooks into the terminal that a progress line would not survive.
QUIET = {"silent": True, "console": "off"}


def check_trackers(names: Sequence[str]) -> None:
    """Raise a UserError where a tracker is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"run.trackers: {TITLES[name]} is not installed.", f"pip install 'jaxft[{name}]'"
            )


class Tracker:
    """One tracker's own view of a run; `wandb` and `trackio` have the same few functions.

    Args:
        name: `wandb` or `trackio`.
        begin: what its `init` is told.
        tell: says a sentence to the person, once.
    """

    def __init__(self, name: str, begin: Mapping[str, Any], tell: Callable[[str], None]):
        self._name, self._begin, self._tell = name, begin, tell
        self._waiting: queue.Queue[tuple[int | None, dict[str, float]] | None] = queue.Queue(
            WAITING
        )
        self._left = False
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int | None, values: Mapping[str, float]) -> None:
        """Hand on what is told of a step, or of the end; at once, whatever becomes of it."""
        if self._left or not values:
            return
        try:
            self._waiting.put_nowait((step, dict(values)))
        except queue.Full:
            self._leave("it is too slow")

    def close(self) -> None:
        """Wait for what is on its way, for a minute at most."""
        if self._left:
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(LAST_SECONDS)
        if self._thread.is_alive():
            self._leave(f"it did not finish within {LAST_SECONDS:.0f} seconds")

    def _send(self) -> None:
        try:
            # Imported here, since it takes seconds and may fail like all the rest.
            tracker = importlib.import_module(self._name)
            run = tracker.init(**self._begin)
            while (entry := self._waiting.get()) is not None:
                step, values = entry
                run.log(values, step=step)
            run.finish()
        except BaseException as error:  # whatever a tracker does, the run goes on
            self._leave(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _leave(self, why: str) -> None:
        if not self._left:
            self._left = True
            self._tell(f"{TITLES[self._name]} is no longer logged to: {why}")


@contextlib.contextmanager
def open_trackers(
    names: Sequence[str],
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    tell: Callable[[str], None],
) -> Iterator[list[Tracker]]:
    """The trackers that a config asks for, closed when the run ends.

    Args:
        names: `run.trackers`; none in a process that does not write.
        about: the run's `name` and `dir`, an `id` that a resumed run has again, and whether it is
            `resumed`.
        config: the whole config.
        tell: says a sentence to the person.
    """
    trackers = [Tracker(name, _begin(name, about, config), tell) for name in names]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


def _begin(name: str, about: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `init`."""
    project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
    entry = {"project": project, "name": about["name"], "config": dict(config)}
    if name == "wandb":
        identity = {"id": about["id"], "resume": "allow"}
        return entry | identity | {"settings": QUIET, "dir": about["dir"]}
    # Trackio knows runs by name alone, and would go on with another run that had this one's.
    return entry | {"resume": "allow" if about["resumed"] else "never"}
