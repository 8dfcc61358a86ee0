"""A run's evaluations: its eval rows, and its pretraining objective where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxft.analysis.forgetting import SPLIT as FORGETTING
from jaxft.analysis.forgetting import Forgetting
from jaxft.engine.evaluate import EvalStep, Interrupted, evaluate
from jaxft.engine.setup import Setup
from jaxft.engine.state import TrainState
from jaxft.errors import UserError
from jaxft.models.load import Model
from jaxft.runs.folder import RunFolder
from jaxft.training.batches import Batches
from jaxft.training.layers import write_drift
from jaxft.training.log import Log
from jaxft.training.meter import is_best, patience_is_over, scores_before
from jaxft.training.phase import PhaseStep
from jaxft.training.result import score_before, write_evaluation


class Evaluator:
    """Scores a state, for the event log, the terminal and the run's folder.

    Args:
        setup: the run.
        metric: the one that chooses the best.
        forgetting: the pretraining objective; None where it is not followed.
        origin: the model that the run began with; its values are not looked at.
        events: the events so far, with the evaluations before.
        run, log: where scores and predictions go.
        interrupted: asked while rows are scored.
    """

    def __init__(
        self,
        setup: Setup,
        metric: str,
        forgetting: Forgetting | None,
        origin: Model,
        events: Iterable[Mapping[str, Any]],
        run: RunFolder,
        log: Log,
        interrupted: Callable[[], bool],
    ):
        self.metric = metric
        self._lower = setup.task.metrics[metric].lower_is_better
        self._setup, self._forgetting, self._origin = setup, forgetting, origin
        self._run, self._log, self._progress = run, log.events, log.progress
        self._interrupted = interrupted
        self._scores = scores_before(events, metric)

    def before(self, stage: PhaseStep, state: TrainState, eval_step: EvalStep) -> None:
        """Score what the run starts from, as far as that is asked for."""
        params, told = stage.params(state), (self._progress, self._interrupted)
        self._look_back(0, params)
        score_before(self._setup, self._run, self._log, eval_step, params, *told)

    def score(
        self, stage: PhaseStep, state: TrainState, step: int, batches: Batches
    ) -> dict[str, float] | None:
        """Score the eval rows; None where a signal came before they were through.

        Args:
            stage: the phase under way.
            state: the state after `step` steps.
            step: steps done.
            batches: the phase's, with its own evaluation.

        Raises:
            UserError: these rows have no such metric.
        """
        rows, params = self._setup.splits["eval"], stage.params(state)
        self._progress.doing(f"scoring {len(rows.examples):,} eval rows")
        how = batches.eval_step, params, rows, self._interrupted, batches.eval_collate
        try:
            found = evaluate(self._setup, *how)
        except Interrupted:
            return None
        if self.metric not in found.scores:
            raise UserError(
                f"checkpoint.best: these rows have no {self.metric}.",
                f"They have {', '.join(found.scores)}.",
            )
        score = found.scores[self.metric]
        best = is_best(score, self._scores, lower_is_better=self._lower)
        self._scores.append(score)
        self._log.eval(step, "eval", found.scores)
        self._look_back(step, params)
        if self._setup.length.layers_every:
            write_drift(self._log, stage, state, step, self._origin)
        self._progress.evaluation(step, found.scores, best=best)
        write_evaluation(self._setup, self._run, found, step, best=best)
        return found.scores

    def patience_is_over(self) -> bool:
        """Whether the metric has not improved for as many evaluations as the run waits."""
        patience = self._setup.config.checkpoint.patience
        return patience_is_over(self._scores, patience, lower_is_better=self._lower)

    def _look_back(self, step: int, params: dict[str, Any]) -> None:
        if self._forgetting is not None:
            self._log.eval(step, FORGETTING, self._forgetting.score(params))
