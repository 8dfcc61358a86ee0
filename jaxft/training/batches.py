"""Training batches of a run: prefetched, and with the trunk's output where it is cached."""

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


def training_batches(setup: Setup, collate: Collate, first: int, stop: int) -> Iterator[Batch]:
    """Yield this process's part of a run's training batches, made ahead of time.

    Args:
        setup: the run.
        collate: makes the batches.
        first: the first step.
        stop: the step after the last.
    """
    index, count = my_rows(setup.mesh)
    return batches(
        setup.plan,
        collate,
        first,
        stop,
        process_index=index,
        process_count=count,
        workers=setup.config.data.workers,
        prefetch=setup.config.data.prefetch,
        augment=setup.splits["train"].examples.random,
    )


class Batches:
    """Training batches of a run, made for each phase.

    Args:
        setup: the run.
        eval_step: the run's evaluation.
        trunks: the plan of each phase.
        progress: shows messages.
        interrupted: called while a trunk runs over the examples; True stops it.

    Attributes:
        eval_step, eval_collate: the phase's evaluation, and the function that makes its batches.
        cached: whether the phase reads the trunk's output from the cache.
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
        """Continue from `step` in a phase, after caching the output of its trunk if it has one.

        Raises:
            Interrupted: a signal came meanwhile.
            UserError: the output cannot be stored.
        """
        # Of sampled blocks any may train later: nothing above the embeddings is a trunk.
        now = stage.now if stage.period is None else stage.phases[0]
        index, known = now.phase.index, {**stage.frozen, **state.previously_trained}
        if index < len(self._trunks):
            plan = self._trunks[index]
        else:  # a phase that was decided on during the run
            plan = plan_trunk(stage.setup, now, batch_shapes(stage.setup))
        setup, reports = self._setup, (self._progress, self._interrupted)
        compute = replace(now.compute, remat=setup.compute.remat)  # no backward pass here
        collate = open_trunk(setup, compute, plan, known, *reports)
        self.cached = collate != setup.splits["train"].examples.collate
        self.eval_collate = open_trunk(setup, compute, plan, known, *reports, split="eval")
        whole = self.eval_collate == setup.splits["eval"].examples.collate
        self.eval_step = self._whole_eval if whole else build_eval_step(setup, compute)
        if collate == self._collate:
            return  # the prefetched batches are still right
        self.close()
        self._collate = collate
        self._made = training_batches(setup, collate, step, setup.length.total_steps)

    def next(self) -> dict[str, jax.Array]:
        """Return the next batch, transferred to the devices while earlier steps still run."""
        return place_batch(next(self._made), batch_sharding(self._setup.mesh))

    def close(self) -> None:
        """Stop the prefetching."""
        if isinstance(self._made, Generator):
            self._made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
