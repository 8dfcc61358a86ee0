"""Evaluations during a run: its eval rows and, if asked for, its pretraining objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxft.analysis.forgetting import SPLIT as FORGETTING
from jaxft.analysis.forgetting import Forgetting
from jaxft.engine.evaluate import EvalStep, Interrupted, NotFiniteError, evaluate
from jaxft.engine.setup import Setup
from jaxft.engine.state import TrainState
from jaxft.errors import UserError
from jaxft.models.load import Model
from jaxft.runs.folder import RunFolder
from jaxft.training.batches import Batches
from jaxft.training.layers import write_drift
from jaxft.training.log import Log
from jaxft.training.patience import is_best, patience_is_over, scores_before
from jaxft.training.phase import PhaseStep
from jaxft.training.result import score_before, write_evaluation


class Evaluator:
    """Scores of a run's states, written to the event log, the terminal and the run's folder.

    Args:
        setup: the run.
        metric: chooses the best checkpoint.
        forgetting: the pretraining objective; None where it is not scored.
        initial: the initial model, without its values.
        events: the event log so far, with the previous evaluations.
        run, log: receive scores and predictions.
        interrupted: called while rows are scored; True stops the evaluation.
        failure: as `Log` has it; of no step where the loss on the eval rows is not finite.
    """

    def __init__(
        self,
        setup: Setup,
        metric: str,
        forgetting: Forgetting | None,
        initial: Model,
        events: Iterable[Mapping[str, Any]],
        run: RunFolder,
        log: Log,
        interrupted: Callable[[], bool],
        failure: Callable[[int, int], UserError],
    ):
        self.metric = metric
        self._lower = setup.task.metrics[metric].lower_is_better
        self._setup, self._forgetting, self._initial = setup, forgetting, initial
        self._run, self._log, self._progress = run, log.events, log.progress
        self._interrupted, self._failure = interrupted, failure
        self._scores = scores_before(events, metric)

    def before(self, stage: PhaseStep, state: TrainState, eval_step: EvalStep) -> None:
        """Score the initial parameters, as far as the config asks for it."""
        params, reports = stage.params(state), (self._progress, self._interrupted)
        self._score_forgetting(0, params)
        score_before(self._setup, self._run, self._log, eval_step, params, *reports)

    def score(
        self, stage: PhaseStep, state: TrainState, step: int, batches: Batches
    ) -> dict[str, float] | None:
        """Score the eval rows; return None where a signal came before all were scored.

        Args:
            stage: the current phase.
            state: the state after `step` steps.
            step: steps done.
            batches: the phase's, with its evaluation.

        Raises:
            UserError: the metric is undefined for these rows, or the loss is not finite.
        """
        rows, params = self._setup.splits["eval"], stage.params(state)
        self._progress.doing(f"scoring {len(rows.examples):,} eval rows")
        arguments = batches.eval_step, params, rows, self._interrupted, batches.eval_collate
        try:
            evaluation = evaluate(self._setup, *arguments)
        except Interrupted:
            return None
        except NotFiniteError as error:
            raise self._failure(step, 0) from error
        if self.metric not in evaluation.scores:
            raise UserError(
                f"checkpoint.best: these rows have no {self.metric}.",
                f"They have {', '.join(evaluation.scores)}.",
            )
        score = evaluation.scores[self.metric]
        best = is_best(score, self._scores, lower_is_better=self._lower)
        self._scores.append(score)
        self._log.eval(step, "eval", evaluation.scores)
        self._score_forgetting(step, params)
        if self._setup.length.layers_every:
            write_drift(self._log, stage, state, step, self._initial)
        self._progress.evaluation(step, evaluation.scores, best=best)
        write_evaluation(self._setup, self._run, evaluation, step, best=best)
        return evaluation.scores

    def patience_is_over(self) -> bool:
        """Return whether the metric has not improved for `checkpoint.patience` evaluations."""
        patience = self._setup.config.checkpoint.patience
        return patience_is_over(self._scores, patience, lower_is_better=self._lower)

    def _score_forgetting(self, step: int, params: dict[str, Any]) -> None:
        if self._forgetting is not None:
            self._log.eval(step, FORGETTING, self._forgetting.score(params))
