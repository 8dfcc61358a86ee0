"""Prediction targets, selected by `task.problem`: a class, several labels, or a number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from jaxft.data.sources.source import Source
from jaxft.models.model import Model
from jaxft.tasks.parts.classes.many import ManyLabels
from jaxft.tasks.parts.classes.number import Number
from jaxft.tasks.parts.classes.one import SINGLE_LABEL, OneClass, Section
from jaxft.tasks.parts.contract import (
    Batch,
    BoundTask,
    ExamplesT,
    Facts,
    Outcomes,
    Outputs,
    Sum,
    Sums,
    Task,
)
from jaxft.tasks.parts.labels import Labels
from jaxft.tasks.parts.metric import Metric


class Target(Protocol):
    """A prediction target: reads labels; computes loss, metrics and predictions.

    Attributes:
        problem: Hugging Face's `problem_type`.
        primary, scores: see `primary` and `metrics` of `jaxft.tasks.parts.contract.Task`.
        columns: the source columns of the labels.
    """

    @property
    def problem(self) -> str: ...

    @property
    def primary(self) -> str: ...

    @property
    def scores(self) -> Mapping[str, Metric]: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def names(self, source: Source) -> tuple[str, ...]:
        """Return the names of the model's outputs in order, from the training rows."""

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> Any:
        """Read a row's label as one or several numbers; raise BadValue if it is invalid."""

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        """Read every row's label; raise a UserError that names the first invalid row."""

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """See `BoundTask.loss`; likewise `metrics` and `outcomes`."""

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums: ...

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]: ...

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        """Compute the scores of a whole evaluation."""

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        """Return which predictions are wrong: `[examples]` bool."""

    def warnings(self, outcomes: Outcomes, labels: np.ndarray, names: Sequence[str]) -> list[str]:
        """Return a sentence for each reason to distrust the scores of a whole evaluation."""

    def prediction(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        """Return the prediction of one example, for the predictions file.

        Args:
            number: the example.
            outcomes: of every example.
            labels: `[examples, ...]`, or None.
            names: the model's outputs.

        Returns:
            `label` (`value` for a number) and `probabilities` of the 20 likeliest classes at most;
            with labels, `label` is the true one, beside `predicted` and `loss`.
        """


def make_target(section: Section) -> Target:
    """Make the target of a config's `task` section."""
    if section.problem == "multi_label":
        return ManyLabels(section)
    assert isinstance(section.label, str)  # checked by the config
    kind = OneClass if section.problem == "single_label" else Number
    return kind(section, section.label)


TargetTaskT = TypeVar("TargetTaskT", bound="TargetTask")


@dataclass(frozen=True)
class TargetTask(Task):
    """The common part of tasks that predict a target: its labels and its scores.

    Args:
        section: the config's `task` section.
        target: the prediction target.
    """

    section: Section
    target: Target

    @property
    @abstractmethod
    def input_columns(self) -> tuple[str, ...]:
        """The columns of the model's inputs."""

    @property
    def label_column(self) -> str | None:
        return self.section.label if isinstance(self.section.label, str) else None

    @property
    def view(self) -> str:
        return self.section.problem

    @property
    def problem_type(self) -> str:
        return self.target.problem

    @property
    def class_weights(self) -> str | Mapping[str | int, float] | None:
        return self.section.class_weights

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return self.target.scores

    @property
    def primary(self) -> str:
        return self.target.primary

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.input_columns, *self.target.columns)

    def label_names(self, source: Source) -> tuple[str, ...]:
        return self.target.names(source)

    @property
    def facts(self) -> Facts:
        return self.target.facts if isinstance(self.target, Number) else {}

    def fit(self, labels: np.ndarray | None, model: Model) -> Facts:
        if labels is None or not isinstance(self.target, Number):
            return {}
        return self.target.fit(labels, model)

    def fitted(self: TargetTaskT, facts: Facts) -> TargetTaskT:
        if not isinstance(self.target, Number):
            return self
        return replace(self, target=self.target.fitted(facts))

    def in_units(self, model: Model) -> Model:
        return self.target.in_units(model) if isinstance(self.target, Number) else model


class BoundTargetTask(BoundTask[TargetTaskT, ExamplesT]):
    """The common part of such tasks on a model: loss, metrics and outcomes."""

    @property
    def target(self) -> Target:
        """The prediction target."""
        return self.task.target

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        return self.target.loss(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        return self.target.metrics(outputs, batch)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        return self.target.outcomes(outputs, batch)

    def summarise(self, outcomes: Outcomes, examples: ExamplesT) -> dict[str, float]:
        labels = examples.labels
        return {} if labels is None else self.target.summarise(outcomes, labels)

    def warnings(self, outcomes: Outcomes, examples: ExamplesT) -> list[str]:
        labels = examples.labels
        return [] if labels is None else self.target.warnings(outcomes, labels, self.label_names)

    def point_labels(self, examples: ExamplesT) -> list[tuple[str, ...]] | None:
        if examples.labels is None or self.target.problem != SINGLE_LABEL:
            return None
        return [(self.label_names[int(number)],) for number in examples.labels]
