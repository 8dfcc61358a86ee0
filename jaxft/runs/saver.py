"""Saves beside the steps: a copy in the host's memory, written by a thread of its own."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

# Named in the documentation of `MemoryOptions`, and exported nowhere (0.12.8).
from orbax.checkpoint._src.path.atomicity_types import TMP_DIR_SUFFIX
from orbax.checkpoint._src.serialization.types import (
    DefaultSerializationStatusCallback,
    TransferPriority,
)

from jaxft.device.distributed import is_first
from jaxft.device.process import return_freed_memory
from jaxft.runs.description import sealed
from jaxft.runs.leaves import begin_checksum, describe
from jaxft.storage.files import is_bucket

HOST = "pinned_host"
PIECE = 16 << 20  # bytes of an array or several that are written at a time beside steps on a CPU
REST = 4.0  # how long the writer then rests, in the time that the piece took


class Pace(DefaultSerializationStatusCallback):
    """Rests between the pieces of a save, for steps that compute on the cores that write it.

    A step on a CPU waits for the last of its cores: a core that a save takes for 0.3 s holds the
    whole step up for as long. With rests the same work is spread over many steps.
    """

    def __init__(self) -> None:
        self._hurried = threading.Event()
        self._piece = threading.local()
        self._turn = threading.Lock()

    def __deepcopy__(self, _: Any) -> Pace:
        """Itself: Orbax copies its options, and there is one pace."""
        return self

    def ease(self) -> None:
        """Rest from now on."""
        self._hurried.clear()

    def hurry(self) -> None:
        """Rest no more, and end the rest that is under way: the save is being waited for."""
        self._hurried.set()

    def key_priority(self, _: Any) -> TransferPriority:
        """Every array is written in its turn; what is saved is a copy, so that none is urgent."""
        return TransferPriority.ASYNCHRONOUS_DEPRIORITIZED

    def on_transfer_end(self, _: Any) -> None:
        """The writing of a piece begins, said of each of its arrays."""
        self._piece.began = time.perf_counter()

    def on_write_end(self, _: Any) -> None:
        """A piece is written, said of each of its arrays: the first one rests for all."""
        began, self._piece.began = getattr(self._piece, "began", None), None
        if began is not None:
            rest = REST * (time.perf_counter() - began)
            with self._turn:  # Orbax writes each tree in a thread; together they rest this long too
                self._hurried.wait(rest)


def writing(pace: Pace) -> ocp.Context:
    """Return Orbax's options: replicas share large arrays only, and steps on a CPU come first.

    A replica's share is cut out of the array by a program of its own, which for a small array takes
    longer than writing it. One process writes all there is anyway, and from the host's memory.

    Args:
        pace: of the saves of one process on a CPU.
    """
    context = ocp.Context()
    saving, alone = context.array_options.saving, jax.process_count() == 1
    saving.use_replica_parallel = not alone
    saving.min_slice_bytes_for_replica_parallel = 2**20
    if alone and jax.local_devices()[0].platform == "cpu":
        context.memory_options.transfer_concurrent_bytes = PIECE
        context.memory_options.serialization_status_callback = pace
    return context


class PreserveBest:
    """Orbax's policy that keeps the best checkpoint.

    Args:
        best: chooses the step among Orbax's entries; None for none.
    """

    def __init__(self, best: Callable[[Sequence[Any]], int | None]):
        self._best = best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> Sequence[bool]:
        """Return for each checkpoint whether it is the best."""
        del context
        best = self._best(checkpoints)
        return [entry.step == best for entry in checkpoints]


class RenamingDeleter:
    """Deleter for Orbax that gives a checkpoint a temporary name before it deletes it.

    Orbax deletes file by file: a process killed meanwhile leaves a half checkpoint, which is listed
    like a whole one. One with a temporary name is not, and Orbax deletes it at the next start.

    Args:
        folder: local, of the checkpoints.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder

    def delete(self, step: int) -> None:
        """Delete the checkpoint of a step; of several processes only the first does."""
        path = self._folder / str(step)
        if is_first() and path.exists():
            aside = self._folder / f"{step}{TMP_DIR_SUFFIX}-{secrets.token_hex(8)}"
            path.rename(aside)
            aside.rmtree()

    def delete_steps(self, steps: Sequence[int]) -> None:
        """Delete the checkpoints of several steps."""
        for step in steps:
            self.delete(step)

    def close(self) -> None:
        """Do nothing: no deletion is in the background."""


class Saver:
    """Writes through one of Orbax's checkpointers without holding up the steps.

    Orbax itself returns once the arrays have left the devices, but plans before that for about a
    millisecond a leaf (a BERT-large with its moments has 1,200), and a checksum is a round trip.
    Here both come after the copy, in the background.

    Where several processes save together, Orbax is called at once: they all have to run the
    same programs in the same order.

    Args:
        orbax: what writes, as `writing` says; nothing else may save with it.
        pace: the one given to `writing`.
    """

    def __init__(self, orbax: ocp.training.Checkpointer, pace: Pace):
        self._orbax, self._pace = orbax, pace
        folder = epath.Path(orbax.directory)
        if not is_bucket(folder):  # where nothing can be renamed
            # The option `todelete_subdir` of Orbax's manager is not to be had here (0.12.8).
            orbax._manager._checkpoint_deleter = RenamingDeleter(folder)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jaxft-save")
        self._pending: Future[None] | None = None
        self._complete: list[Any] = []

    def complete(self) -> list[Any]:
        """Orbax's entries of the complete checkpoints, oldest first, without one being saved."""
        if not self.is_saving():
            self._complete = list(self._orbax.checkpoints)
        return self._complete

    def is_saving(self) -> bool:
        """Return whether a save is under way in the background."""
        pending = self._pending is not None and not self._pending.done()
        return pending or self._orbax.is_saving_in_progress()

    def save(
        self,
        step: int,
        parts: dict[str, Any],
        metrics: Mapping[str, float] | None,
        meta: Mapping[str, Any],
    ) -> None:
        """Begins a save, the one before being over; the arrays may be donated once this returns.

        Args:
            step: the position, which no checkpoint has.
            parts: trees of arrays by the name that each is stored under.
            metrics: results of an evaluation.
            meta: anything JSON holds.
        """
        self.complete()  # what the readers are told until the save is over
        sums = begin_checksum(parts)
        self._pace.ease()

        def write(parts: dict[str, Any]) -> ocp.AsyncResponse[bool]:
            return self._orbax.save_checkpointables_async(
                step,
                dict(parts),  # Orbax adds to the dict that it is given
                force=True,
                metrics=metrics,
                custom_metadata=sealed(describe(parts, sums), dict(meta), metrics),
            )

        begun: Future[ocp.AsyncResponse[bool]] = Future()
        if can_copy(parts):
            begun = self._thread.submit(write, on_host(parts))
        else:
            begun.set_result(write(parts))  # an error leaves nothing that would be waited for
        self._pending = self._thread.submit(_end, begun)

    def wait(self) -> None:
        """Waits for the save in the background, and raises what went wrong with it."""
        self._pace.hurry()
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except BaseException:
            with suppress(Exception):  # the same error
                self._orbax.wait()
            raise
        self._orbax.wait()

    def close(self) -> None:
        """Waits for the save in the background, and ends."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()


def _end(begun: Future[ocp.AsyncResponse[bool]]) -> None:
    """Wait for a save that Orbax has begun, and return the memory that its copies took.

    The thread that Orbax has for it ends when somebody asks for the result.
    """
    try:
        begun.result().result()
    finally:
        return_freed_memory()


def can_copy(tree: Any) -> bool:
    """Return whether `on_host` can hold a state: one process, and devices that copy to it."""
    devices = {device for leaf in jax.tree.leaves(tree) for device in leaf.devices()}
    kinds = [{memory.kind for memory in device.addressable_memories()} for device in devices]
    return jax.process_count() == 1 and all(HOST in memories for memories in kinds)


def on_host(tree: Any) -> Any:
    """Copies of arrays in the host's memory, under way; of replicas one is copied."""

    def copy(leaf: jax.Array) -> jax.Array:
        one = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        # A leaf that is there already is copied too, since the next step takes its memory.
        return jax.device_put(one, one.sharding.with_memory_kind(HOST), may_alias=False)

    return jax.tree.map(copy, tree)
