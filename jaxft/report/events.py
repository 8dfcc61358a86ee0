"""Event log: `metrics.jsonl`, and the same numbers as TensorBoard events."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from etils import epath

from jaxft.errors import UserError
from jaxft.report.trackers import Tracker
from jaxft.storage.buckets import LocalFolder

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


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

    Raises:
        UserError: on resume, a line of `metrics.jsonl` is not JSON.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard: bool = True,
        resume_step: int | None = None,
        writes: bool = True,
        trackers: Sequence[Tracker] = (),
    ):
        self._trackers = trackers
        self._local: LocalFolder | None = None
        self._file: IO[str] | None = None
        self._writer: SummaryWriter | None = None
        if not writes:
            return
        earlier = [] if resume_step is None else _upto(read_events(folder), resume_step)
        self._local = LocalFolder(folder)
        file = self._local.path / METRICS
        _rewrite(file, earlier)
        self._file = file.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            epath.Path(folder / TENSORBOARD).rmtree(missing_ok=True)
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
        """Put what was written so far into the bucket, where the run is in one."""
        if self._writer:
            self._writer.flush()
        if self._local:
            self._local.keep()

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
        self.close()

    def _write(self, event: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(event, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer:
            _draw(self._writer, event)
        for tracker in self._trackers:
            tracker.log(event["step"], scalars(event))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every event of a run, in order; empty where there is no `metrics.jsonl`.

    A last line without its end, as a killed run leaves it, is passed over.

    Raises:
        UserError: another line is not a JSON object with a kind and a step.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    # What follows the last line end is empty, or torn: a whole event ends with one.
    return [_parse(line, number, path) for number, line in enumerate(lines[:-1], 1) if line.strip()]


def _parse(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "kind" not in event or not isinstance(event.get("step"), int):
        raise UserError(
            f"{path}, line {number}: not an event (a JSON object with a kind and a step).",
            "Take the line out, or restore the file.",
        )
    return event


def _upto(events: Iterable[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [event for event in events if event["step"] <= step]


def _rewrite(path: Path, events: Iterable[dict[str, Any]]) -> None:
    """Write aside, then rename: a run killed here keeps either the old file or the new one."""
    aside = path.with_name(path.name + ".part")
    aside.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    os.replace(aside, path)


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
