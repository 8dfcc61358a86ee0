"""A run's batches: made ahead, and with the trunk's output in the phases that keep it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Self

import jax

from jaxft.data.batching.loader import Batch, Collate, batches
from jaxft.device.mesh import batch_sharding, my_rows, place_batch
from jaxft.engine.cost import batch_shapes
from jaxft.engine.evaluate import EvalStep, build_eval_step
from jaxft.engine.setup import Build
from jaxft.engine.state import TrainState
from jaxft.engine.trunk import open_trunk
from jaxft.engine.trunk_plan import TrunkPlan, plan_trunk
from jaxft.report.terminal.progress import Progress
from jaxft.training.phase import Stage


class Batches:
    """The training batches of a run from some step on, as each phase wants them.

    Args:
        built: the run.
        eval_step: the run's evaluation.
        trunks: the plan of each phase.
        progress: where to say what is done.
        interrupted: asked while a trunk runs over the examples.

    Attributes:
        eval_step, eval_collate: the phase's own evaluation, and what makes its batches.
        cached: whether the trunk's output is at hand in the phase.
    """

    def __init__(
        self,
        built: Build,
        eval_step: EvalStep,
        trunks: Sequence[TrunkPlan],
        progress: Progress,
        interrupted: Callable[[], bool],
    ):
        self._built, self._trunks = built, trunks
        self._progress, self._interrupted = progress, interrupted
        self._whole_eval, self.eval_step = eval_step, eval_step
        self.eval_collate: Collate = built.splits["eval"].examples.collate
        self.cached = False
        self._collate: Collate | None = None
        self._made: Iterator[Batch] = iter(())

    def enter(self, stage: Stage, state: TrainState, step: int) -> None:
        """Go on from `step` in a phase; where it keeps its trunk's output, that is made first.

        Raises:
            Interrupted: a signal came meanwhile.
            UserError: the output cannot be kept.
        """
        index, known = stage.built.phase.index, {**stage.frozen, **state.settled}
        if index < len(self._trunks):
            plan = self._trunks[index]
        else:  # a phase that the run has decided on under way
            plan = plan_trunk(stage.built, batch_shapes(stage.built))
        now, told = stage.built, (self._progress, self._interrupted)
        collate = open_trunk(now, plan, known, *told)
        self.cached = collate != now.splits["train"].examples.collate
        self.eval_collate = open_trunk(now, plan, known, *told, split="eval")
        whole = self.eval_collate == now.splits["eval"].examples.collate
        self.eval_step = self._whole_eval if whole else build_eval_step(now)
        if collate == self._collate:
            return  # what is made ahead fits
        self.close()
        self._collate = collate
        mine, blocks = my_rows(now.mesh)
        self._made = batches(
            self._built.plan,
            collate,
            step,
            self._built.length.total_steps,
            process_index=mine,
            process_count=blocks,
            workers=self._built.config.data.workers,
            prefetch=self._built.config.data.prefetch,
            drawn=now.splits["train"].examples.random,
        )

    def next(self) -> dict[str, jax.Array]:
        """The next step's batch, on its way to the devices while the steps before are under way."""
        return place_batch(next(self._made), batch_sharding(self._built.mesh))

    def close(self) -> None:
        """Make no more."""
        if isinstance(self._made, Generator):
            self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
