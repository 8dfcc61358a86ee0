"""A run's batches: made ahead, and with the trunk's output in the phases that keep it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import Self

import jax

from jaxft.data.batching.loader import Batch, Collate, batches
from jaxft.device.mesh import batch_sharding, my_rows, place_batch
from jaxft.engine.cost import batch_shapes
from jaxft.engine.evaluate import EvalStep, build_eval_step
from jaxft.engine.setup import Setup
from jaxft.engine.state import TrainState
from jaxft.engine.trunk import open_trunk
from jaxft.engine.trunk_plan import TrunkPlan, plan_trunk
from jaxft.report.terminal.progress import Progress
from jaxft.training.phase import PhaseStep


class Batches:
    """The training batches of a run from some step on, as each phase wants them.

    Args:
        setup: the run.
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
        setup: Setup,
        eval_step: EvalStep,
        trunks: Sequence[TrunkPlan],
        progress: Progress,
        interrupted: Callable[[], bool],
    ):
        self._setup, self._trunks = setup, trunks
        self._progress, self._interrupted = progress, interrupted
        self._whole_eval, self.eval_step = eval_step, eval_step
        self.eval_collate: Collate = setup.splits["eval"].examples.collate
        self.cached = False
        self._collate: Collate | None = None
        self._made: Iterator[Batch] = iter(())

    def enter(self, stage: PhaseStep, state: TrainState, step: int) -> None:
        """Go on from `step` in a phase; where it keeps its trunk's output, that is made first.

        Raises:
            Interrupted: a signal came meanwhile.
            UserError: the output cannot be kept.
        """
        index, known = stage.now.phase.index, {**stage.frozen, **state.previously_trained}
        if index < len(self._trunks):
            plan = self._trunks[index]
        else:  # a phase that the run has decided on under way
            plan = plan_trunk(stage.setup, stage.now, batch_shapes(stage.setup))
        setup, told = self._setup, (self._progress, self._interrupted)
        compute = replace(stage.now.compute, remat=setup.compute.remat)  # no step is taken here
        collate = open_trunk(setup, compute, plan, known, *told)
        self.cached = collate != setup.splits["train"].examples.collate
        self.eval_collate = open_trunk(setup, compute, plan, known, *told, split="eval")
        whole = self.eval_collate == setup.splits["eval"].examples.collate
        self.eval_step = self._whole_eval if whole else build_eval_step(setup, compute)
        if collate == self._collate:
            return  # what is made ahead fits
        self.close()
        self._collate = collate
        mine, blocks = my_rows(setup.mesh)
        self._made = batches(
            self._setup.plan,
            collate,
            step,
            self._setup.length.total_steps,
            process_index=mine,
            process_count=blocks,
            workers=self._setup.config.data.workers,
            prefetch=self._setup.config.data.prefetch,
            augment=setup.splits["train"].examples.random,
        )

    def next(self) -> dict[str, jax.Array]:
        """The next step's batch, on its way to the devices while the steps before are under way."""
        return place_batch(next(self._made), batch_sharding(self._setup.mesh))

    def close(self) -> None:
        """Make no more."""
        if isinstance(self._made, Generator):
            self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
