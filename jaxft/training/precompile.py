"""The next phase's step, compiled in a thread while this phase runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import jax
import numpy as np

from jaxft.engine.initial_state import abstract_state, pulled
from jaxft.engine.setup import Build
from jaxft.engine.step import Rates
from jaxft.training.phase import Stage, make_step

Arrays = Mapping[str, jax.Array]


class Ahead:
    """Gives each phase's step, and has that of the phase after it compiled meanwhile.

    Leaving the context waits for a compilation under way, which nothing can stop.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._phase: int | None = None
        self._step: Callable | None = None  # of that phase
        self._next: Future[Callable] | None = None
        self._shapes: Any = None  # of the batches that the next is for
        self._calls = 0

    def step(self, stage: Stage, batch: Arrays) -> Callable:
        """The train step for a batch.

        Args:
            stage: the phase under way.
            batch: where it lies; if the next phase's batches have other shapes, nothing is won.
        """
        index = stage.built.phase.index
        if index != self._phase or self._step is None:
            ready = self._next is not None and self._shapes == _shapes(batch)
            self._step = self._next.result() if self._next is not None and ready else stage.step
            self._phase, self._next, self._calls = index, None, 0
        self._calls += 1
        # The first call may compile this phase's own step: two at once only slow each other.
        if self._calls == 2 and index + 1 < len(stage.built.phases):
            self._shapes = _shapes(batch)
            following = stage.built.in_phase(index + 1)
            frozen = {n: a for n, a in stage.frozen.items() if n in following.table.frozen}
            origin = {name: stage.start[name] for name in pulled(following)}
            known = (_shapes(frozen), self._shapes, _shapes(origin))
            self._next = self._pool.submit(compile_step, following, *known)
        return self._step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def compile_step(
    built: Build,
    frozen: Mapping[str, jax.ShapeDtypeStruct],
    batch: Mapping[str, jax.ShapeDtypeStruct],
    origin: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable:
    """A phase's step, compiled without a value.

    Args:
        built: the run in the phase.
        frozen, batch, origin: what its leaves, its batches and the values that its parameters
            are pulled back to are, and where they lie.
    """
    told = Rates(built.rates[0], built.table.multipliers(), built.table.weight_decays())
    if origin:
        told = replace(told, origin=origin, pull=np.float32(0))
    return make_step(built, frozen).lower(abstract_state(built), frozen, batch, told).compile()


def _shapes(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        for name, a in arrays.items()
    }
