"""Checkpoints of a run: saved in the background, checked on the way back, onto any mesh."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, NamedTuple

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxft.device.distributed import is_first
from jaxft.errors import UserError
from jaxft.runs.description import add_metrics, read_description
from jaxft.runs.errors import DamagedError, attempt_restore, save_failure
from jaxft.runs.leaves import (
    Leaves,
    State,
    checksum,
    compare,
    finite,
    parts_of,
    shapes_of,
    verify,
    with_parts,
)
from jaxft.runs.saver import Pace, PreserveBest, Saver, writing
from jaxft.storage.files import resolved
from jaxft.tree import under


class Restored(NamedTuple, Generic[State]):
    """A state that came back.

    Attributes:
        state: as the one asked for, with arrays on the shardings asked for.
        meta: what was given to `save` as `meta`.
        notes: one sentence for each newer checkpoint that was damaged and passed over.
    """

    state: State
    meta: dict[str, Any]
    notes: list[str]


class Checkpoints:
    """The checkpoints in one folder: the last few and the best.

    A state is any frozen dataclass of trees. Each field that holds arrays is stored on its own, so
    that the parameters can be read without the optimizer's state. A step number is a position.

    Args:
        folder: local or bucket; made when it is first written to.
        keep: how many of the latest checkpoints stay (at least 1); the best stays besides.
        best_metric: the metric, among those given to `save`, that chooses the best; None for none.
        mode: whether the best is the largest or the smallest.
        read_only: leaves the folder alone, also what another process is saving there.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        keep: int = 3,
        best_metric: str | None = None,
        mode: Literal["max", "min"] = "max",
        read_only: bool = False,
    ):
        self.folder = epath.Path(folder)
        if read_only and not self.folder.exists():
            raise UserError(f"{self.folder} holds no checkpoint.")
        self._best_metric, self._mode = best_metric, mode
        self._resumed_at: float = math.inf
        self._metrics: dict[int, Mapping[str, float] | None] = {}  # of checkpoints, by step
        policies = ocp.training.preservation_policies
        rules = [policies.LatestN(keep), PreserveBest(self._best_of)]
        pace = Pace()
        try:
            self._orbax = ocp.training.Checkpointer(
                epath.Path(resolved(self.folder)),
                preservation_policy=policies.AnyPreservationPolicy(rules),
                context=writing(pace),
                cleanup_tmp_directories=not read_only,
            )
        except ValueError as error:
            raise UserError(
                f"A checkpoint in {self.folder} has metrics that are not JSON ({error}).",
                "Remove that checkpoint's folder.",
            ) from error
        self._saver = Saver(self._orbax, pace)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        return [checkpoint.step for checkpoint in self._saver.complete()]

    def latest(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self.steps()[-1] if self.steps() else None

    def best(self) -> int | None:
        """The step with the best metric (the latest among equals), or None if none has one."""
        return self._best_of(self._saver.complete())

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics saved with `step`, or None."""
        saved = {entry.step: self._metrics_of(entry) for entry in self._saver.complete()}.get(step)
        return dict(saved) if saved else None

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a state in the background; the arrays may be donated once this returns.

        A step that is saved already is not written again; only its metrics are, if it had none. The
        first save after a restore deletes the checkpoints later than the one restored: that future
        is abandoned.

        Args:
            step: the position, in steps.
            state: a frozen dataclass of trees of arrays.
            metrics: results of an evaluation; those that are not finite are left out.
            meta: anything JSON holds, given back by `restore`.

        Raises:
            UserError: this save or the one before it failed; the checkpoints before are intact.
        """
        scores = finite(metrics)
        self.wait()
        with self._failures_named():
            for later in [saved for saved in self.steps() if saved > self._resumed_at]:
                self._orbax.delete(later)
            self._resumed_at = math.inf
            if step not in self.steps():
                self._metrics.pop(step, None)
                self._saver.save(step, parts_of(state), scores, meta or {})
            elif scores is not None and self.metrics(step) is None:
                if is_first():
                    add_metrics(self.folder / str(step), scores)
                self._metrics[step] = scores

    def restore(self, like: Callable[[int], State], step: int | None = None) -> Restored[State]:
        """The state of a checkpoint, checked leaf by leaf.

        Args:
            like: gives the state wanted at a step, with `jax.ShapeDtypeStruct` leaves that carry
                a sharding.
            step: which checkpoint; None for the latest that is not damaged.

        Raises:
            UserError: there is none, all are damaged, or the checkpoint is of another model.
        """
        self.wait()
        newest = self.resolve("last" if step is None else step)
        candidates = self.steps()[::-1] if step is None else [newest]
        notes: list[str] = []
        for candidate in candidates:
            wanted = like(candidate)
            parts = parts_of(wanted)
            try:
                record = read_description(self.folder / str(candidate))
                saved, meta = record["leaves"], record["meta"]
                compare(saved, parts, f"{self.folder}/{candidate}")
                loaded = self._read(candidate, parts, saved)
            except DamagedError as damage:
                notes.append(f"Checkpoint {candidate} in {self.folder} is damaged: {damage}.")
                continue
            self._resumed_at = candidate
            return Restored(with_parts(wanted, loaded), meta, notes)
        raise UserError(
            " ".join(notes), "" if step is not None else "No checkpoint is left to resume from."
        )

    def load_params(
        self,
        which: Literal["best", "last"] | int | str = "best",
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """The parameters that had trained by a checkpoint: their average, where it has one.

        Args:
            which: `best`, `last`, or a step.
            shardings: name -> where to put it; None puts all on the first device.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        self.wait()
        step = self.resolve(which)
        try:
            leaves: Leaves = read_description(self.folder / str(step))["leaves"]
            field = "average" if under(leaves, "average") else "trainable"
            parts = shapes_of(leaves, (field, "settled"), shardings)
            loaded = self._read(step, parts, leaves)
            return {**loaded.get("settled", {}), **loaded[field]}
        except DamagedError as damage:
            others = [str(other) for other in self.steps() if other != step]
            raise UserError(
                f"Checkpoint {step} in {self.folder} is damaged: {damage}.",
                f"Others: {', '.join(others)}." if others else "There is no other.",
            ) from damage

    def resolve(self, which: Literal["best", "last"] | int | str) -> int:
        """The step that `best`, `last` or a number names; UserError where there is none."""
        known = self.steps()
        if not known:
            raise UserError(f"{self.folder} holds no checkpoint.")
        if which == "last":
            return known[-1]
        if which == "best":
            best = self.best()
            if best is None:
                raise UserError(
                    f"No checkpoint in {self.folder} has been evaluated.", "Ask for 'last'."
                )
            return best
        if str(which) not in map(str, known):
            raise UserError(
                f"{self.folder} holds no checkpoint {which}.",
                f"There are: best, last, {', '.join(map(str, known))}.",
            )
        return int(which)

    def is_saving(self) -> bool:
        """Return whether a save is under way in the background."""
        return self._saver.is_saving()

    def wait(self) -> None:
        """Waits for the save in the background; UserError if it failed (the others are intact)."""
        with self._failures_named():
            self._saver.wait()

    def close(self) -> None:
        """Waits for the save in the background, and ends."""
        with self._failures_named():
            self._saver.close()

    def _best_of(self, entries: Sequence[Any]) -> int | None:
        """The step with the best metric among Orbax's entries, the latest among equals."""
        scored = [(self._score(self._metrics_of(entry)), entry.step) for entry in entries]
        score, step = max(scored, default=(-math.inf, None))
        return step if score > -math.inf else None

    def _score(self, metrics: Mapping[str, float] | None) -> float:
        """Higher is better; a checkpoint without the metric comes last."""
        value = (metrics or {}).get(self._best_metric or "")
        if value is None:
            return -math.inf
        return -value if self._mode == "min" else value

    def _metrics_of(self, entry: Any) -> Mapping[str, float] | None:
        """The metrics of one of Orbax's entries, from the checkpoint's own sealed description.

        Orbax's file of metrics has no checksum. It serves where the description has none, of an
        earlier version, or is damaged, which is told when the checkpoint is read.
        """
        if entry.step not in self._metrics:
            try:
                described = read_description(self.folder / str(entry.step))
            except DamagedError:
                described = {}
            self._metrics[entry.step] = described.get("metrics", entry.metrics)
        return self._metrics[entry.step]

    def _read(self, step: int, parts: dict[str, Any], saved: Leaves) -> dict[str, Any]:
        """Some fields of a checkpoint, each leaf verified."""

        def read() -> Any:
            loaded = self._orbax.load_checkpointables(step, parts)
            return loaded, checksum(loaded)

        loaded, sums = attempt_restore(read, "its arrays cannot be read")
        verify(saved, loaded, sums)
        return loaded

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever the disk, Orbax or TensorStore say
            raise save_failure(self.folder, error, self.steps()) from error
