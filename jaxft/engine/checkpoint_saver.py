"""Saves beside the steps: a copy in the host's memory, written by a thread of its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxft.engine.checkpoint_leaves import begin_checksum, describe, sealed

HOST = "pinned_host"


class Saver:
    """Writes through one of Orbax's checkpointers without holding up the steps.

    Orbax itself returns once the arrays have left the devices, but plans before that for about a
    millisecond a leaf (a BERT-large with its moments has 1,200), and a checksum is a round trip.
    Here both come after the copy, in the background.

    Where several processes save together, Orbax is called at once: they all have to run the
    same programs in the same order.

    Args:
        orbax: what writes; nothing else may save with it.
    """

    def __init__(self, orbax: ocp.training.Checkpointer):
        self._orbax = orbax
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jaxft-save")
        self._pending: Future[None] | None = None
        self._complete: list[Any] = []

    def complete(self) -> list[Any]:
        """Orbax's entries of the complete checkpoints, oldest first, without one being saved."""
        if not self.is_saving():
            self._complete = list(self._orbax.checkpoints)
        return self._complete

    def is_saving(self) -> bool:
        """Whether a save is under way in the background."""
        begins = self._pending is not None and not self._pending.done()
        return begins or self._orbax.is_saving_in_progress()

    def save(
        self,
        step: int,
        parts: dict[str, Any],
        metrics: Mapping[str, float] | None,
        meta: Mapping[str, Any],
        overwrite: bool,
    ) -> None:
        """Begins a save, the one before being over; the arrays may be donated once this returns.

        Args:
            step: the position.
            parts: trees of arrays by the name that each is stored under.
            metrics: results of an evaluation.
            meta: anything JSON holds.
            overwrite: whether `step` is there already.
        """
        self.complete()  # what the readers are told until the save is over
        sums = begin_checksum(parts)

        def write(parts: dict[str, Any]) -> None:
            self._orbax.save_checkpointables_async(
                step,
                dict(parts),  # Orbax adds to the dict that it is given
                force=True,
                overwrite=overwrite,
                metrics=metrics,
                custom_metadata=sealed(describe(parts, sums), dict(meta)),
            )

        if can_copy(parts):
            self._pending = self._thread.submit(write, on_host(parts))
        else:
            write(parts)

    def wait(self) -> None:
        """Waits for the save in the background, and raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        self._orbax.wait()

    def close(self) -> None:
        """Waits for the save in the background, and ends."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()


def can_copy(tree: Any) -> bool:
    """Whether `on_host` can hold a state: one process, with devices that copy to the host."""
    devices = {device for leaf in jax.tree.leaves(tree) for device in leaf.devices()}
    kinds = [{memory.kind for memory in device.addressable_memories()} for device in devices]
    return jax.process_count() == 1 and all(HOST in found for found in kinds)


def on_host(tree: Any) -> Any:
    """Copies of arrays in the host's memory, under way; of replicas one is copied."""

    def copy(leaf: jax.Array) -> jax.Array:
        one = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        return jax.device_put(one, one.sharding.with_memory_kind(HOST))

    return jax.tree.map(copy, tree)
