"""Saved states of a study's parts: what an interrupted part and its survivors go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from jaxft.device.distributed import from_first, is_first, wait_for_all
from jaxft.engine.state import TrainState
from jaxft.errors import UserError
from jaxft.runs.checkpoint import Checkpoints
from jaxft.runs.description import read_description
from jaxft.runs.errors import DamagedError


class SavedStates:
    """The last saved states of each part, in the folder of its study.

    Args:
        folder: that holds a folder for each part, named by its index.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        self._open: dict[int, Checkpoints] = {}

    def __enter__(self) -> SavedStates:
        return self

    def __exit__(self, *exception: object) -> None:
        for checkpoints in self._open.values():
            checkpoints.close()

    def record(self, part: int) -> dict[str, Any] | None:
        """Read what was saved with a part's states; None where there are none.

        Raises:
            UserError: it is damaged.
        """
        there = self._path(part).exists
        if part not in self._open and not from_first(there):
            return None
        step = self._checkpoints(part).latest()
        if step is None:
            return None
        try:
            record: dict[str, Any] = read_description(self._path(part) / str(step))["meta"]
        except DamagedError as damage:
            raise UserError(
                f"The states of program {part} in {self._folder} are damaged: {damage}.",
                f"Remove {self._path(part)}: its members then start over.",
            ) from damage
        return record

    def save(self, part: int, step: int, states: TrainState, record: Mapping[str, Any]) -> None:
        """Save a part's states in the background; see `Checkpoints.save`."""
        self._checkpoints(part).save(step, states, meta=record)

    def wait(self, part: int) -> None:
        """Wait until a part's states are written."""
        self._checkpoints(part).wait()

    def restore(self, part: int, like: TrainState) -> TrainState:
        """Read the states of a part's members, into the shardings of `like`."""

        def describe(leaf: jax.Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

        wanted = jax.tree.map(describe, like)
        return self._checkpoints(part).restore(lambda _: wanted).state

    def discard(self, part: int) -> None:
        """Delete the states of a part that nothing goes on from."""
        if part in self._open:
            self._open.pop(part).close()
        wait_for_all()
        if is_first() and self._path(part).exists():
            self._path(part).rmtree()

    def _path(self, part: int) -> epath.Path:
        return self._folder / str(part)

    def _checkpoints(self, part: int) -> Checkpoints:
        if part not in self._open:
            self._open[part] = Checkpoints(self._path(part), keep=1)
        return self._open[part]
