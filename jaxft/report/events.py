"""Event log: `metrics.jsonl`, and the same numbers as TensorBoard events."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from etils import epath

from jaxft.errors import UserError
from jaxft.report.trackers import Tracker
from jaxft.runs.digests import Digests
from jaxft.storage.buckets import LocalFolder

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
MOST_SHOWN = 10_000  # events of each kind that a page shows


class EventLog:
    """The event log: one JSON line an event, flushed, so that a killed run loses nothing.

    `metrics.jsonl` is the truth and TensorBoard a view of it: on resume the lines after
    `resume_step` are dropped and the view is drawn again from the rest, so that no step of a
    resumed run is there twice.

    Args:
        folder: the run folder.
        tensorboard: also write TensorBoard events under `folder/tensorboard`.
        resume_step: the step the run goes on from; None starts afresh.
        writes: whether this process writes for all; where another does, nothing is written.
        trackers: what else is told each event's numbers.
        digests: of the run's files: `keep` sets that of the lines so far; None for none.

    Raises:
        UserError: on resume, a line of `metrics.jsonl` is not JSON, or it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: bool = True,
        resume_step: int | None = None,
        writes: bool = True,
        trackers: Sequence[Tracker] = (),
        digests: Digests | None = None,
    ):
        self._trackers, self._digests = trackers, digests
        self._local: LocalFolder | None = None
        self._file: IO[bytes] | None = None
        self._writer: SummaryWriter | None = None
        if not writes:
            return
        earlier = [] if resume_step is None else _upto(read_events(folder), resume_step)
        self._local = LocalFolder(folder)
        file = self._local.path / METRICS
        text = "".join(json.dumps(event) + "\n" for event in earlier).encode()
        self._size, self._sha256 = len(text), hashlib.sha256(text)
        if digests is not None:
            digests.record({METRICS: text})
        _rewrite(file, text)
        self._file = file.open("ab")
        if tensorboard:
            from tensorboardX import SummaryWriter

            _remove_tensorboard(epath.Path(folder / TENSORBOARD))
            self._writer = SummaryWriter(str(self._local.path / TENSORBOARD))
            for event in earlier:
                _draw(self._writer, event)

    def train(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one training event.

        Args:
            step: the number of steps done.
            values: `loss`, `epoch`, metrics, `grad_norm`, `examples_per_second`, and so on, as
                numbers; `rates` as a mapping from group to rate.
        """
        self._write({"kind": "train", "step": step, "time": time.time(), **_plain(values)})

    def eval(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Write one evaluation of `split`, made after `step` steps."""
        head = {"kind": "eval", "step": step, "split": split, "time": time.time()}
        self._write({**head, **_plain(values)})
        self.keep()

    def note(self, step: int, text: str) -> None:
        """Write one sentence about what happened at `step`, such as a step that was not finite."""
        self._write({"kind": "note", "step": step, "time": time.time(), "text": text})

    def of_kind(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write what else there is to say of the step that ended at `step`.

        Args:
            kind: `layers` (metric -> layer -> number) or `multipliers` (of each parameter).
            step: the number of steps done.
            values: numbers, or mappings to numbers.
        """
        self._write({"kind": kind, "step": step, "time": time.time(), **_plain(values)})

    def read(self) -> list[dict[str, Any]]:
        """Every event so far; none where another process writes them."""
        return read_events(self._local.path) if self._local else []

    def keep(self) -> None:
        """Make what was written so far last: on the disk or in the bucket, with its digest."""
        if self._writer:
            self._writer.flush()
        if self._local:
            self._local.keep()
        if self._file is not None and self._digests is not None:
            os.fsync(self._file.fileno())
            self._digests.record_prefix(METRICS, self._size, self._sha256.hexdigest())

    def close(self) -> None:
        """Flush and close both files; a second call does nothing."""
        if self._file:
            self._file.close()
        if self._writer:
            self._writer.close()
            self._writer = None
        if self._local:
            self._local.close()
            self._local = None

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.keep()
        finally:
            self.close()

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = (json.dumps(event, allow_nan=False) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._size += len(line)
        self._sha256.update(line)
        if self._writer:
            _draw(self._writer, event)
        for tracker in self._trackers:
            tracker.log(event["step"], scalars(event))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every event of a run, in order; empty where there is no `metrics.jsonl`.

    Raises:
        UserError: as `each_event`.
    """
    return list(each_event(folder))


def thinned_events(folder: Path, most: int = MOST_SHOWN) -> list[dict[str, Any]]:
    """Read the events of a run for display, at most about `most` of each kind.

    Of a kind with more, every second, fourth, eighth and so on is left, and the last: memory is
    bounded, however long the run.

    Raises:
        UserError: as `each_event`.
    """
    kinds: dict[str, _Thinned] = {}
    for number, event in enumerate(each_event(folder)):
        kinds.setdefault(str(event["kind"]), _Thinned(most)).add(number, event)
    numbered = [one for kind in kinds.values() for one in kind.events()]
    return [event for _, event in sorted(numbered, key=lambda one: one[0])]


class _Thinned:
    """At most `most` of the events of one kind, evenly spaced, and the last."""

    def __init__(self, most: int):
        self._most, self._every, self._count = most, 1, 0
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._last: list[tuple[int, dict[str, Any]]] = []

    def add(self, number: int, event: dict[str, Any]) -> None:
        self._last = [(number, event)]
        if self._count % self._every == 0:
            self._events += self._last
        self._count += 1
        if len(self._events) > self._most:
            self._events, self._every = self._events[::2], 2 * self._every

    def events(self) -> list[tuple[int, dict[str, Any]]]:
        more = [one for one in self._last if one not in self._events[-1:]]
        return [*self._events, *more]


def each_event(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every event of a run, in order; none where there is no `metrics.jsonl`.

    A last line without its end, as a killed run leaves it, is passed over.

    Raises:
        UserError: another line is not a JSON object with a kind and a step; or the file is not
            what was written, by its digest.
    """
    path = folder / METRICS
    Digests(folder).check_prefix(METRICS)
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            # Without its end a line is torn: a whole event ends with one.
            if line.endswith(b"\n") and line.strip():
                yield _parse(line, number, path)


def _parse(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or "kind" not in event or not isinstance(event.get("step"), int):
        raise UserError(
            f"{path}, line {number}: not an event (a JSON object with a kind and a step).",
            "Take the line out, or restore the file.",
        )
    return event


def _upto(events: Iterable[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [event for event in events if event["step"] <= step]


def _rewrite(path: Path, text: bytes) -> None:
    """Write aside, then rename: a run killed here keeps either the old file or the new one."""
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(text)
    os.replace(aside, path)


def _remove_tensorboard(folder: epath.Path) -> None:
    """Remove the events of an earlier start; the folder may be a link, to another disk."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("events.out.tfevents"):
            path.unlink()


def _plain(value: Any) -> Any:
    """Numbers of any array library as JSON numbers; not-finite ones as null, for JSON has none."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _draw(writer: SummaryWriter, event: Mapping[str, Any]) -> None:
    """One event as TensorBoard scalars, or a note as text."""
    step, wall = event["step"], event.get("time")
    if event["kind"] == "note":
        writer.add_text("notes", event["text"], step, walltime=wall)
    for name, number in scalars(event).items():
        writer.add_scalar(name, number, step, walltime=wall)


def scalars(event: Mapping[str, Any]) -> dict[str, float]:
    """An event's numbers, named `train/loss`, `eval/accuracy`, `rates/head`."""
    if event["kind"] in ("multipliers", "note"):
        return {}  # a curve for each parameter would bury all others; a note has no number
    section = event.get("split", event["kind"])
    scalars: dict[str, float] = {}
    for name, value in event.items():
        if name in ("kind", "step", "time", "split"):
            continue
        inside = value if isinstance(value, Mapping) else {name: value}
        prefix = name if isinstance(value, Mapping) else section
        scalars |= {
            f"{prefix}/{leaf}": number
            for leaf, number in inside.items()
            if isinstance(number, int | float)
        }
    return scalars
