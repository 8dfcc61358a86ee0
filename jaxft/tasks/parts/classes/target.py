"""What is told of an example, as `task.problem` asks: a class, several labels, or a number."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from jaxft.data.sources.open import Source
from jaxft.tasks.parts.classes.many import ManyLabels
from jaxft.tasks.parts.classes.number import Number
from jaxft.tasks.parts.classes.one import SINGLE_LABEL, OneClass, Section
from jaxft.tasks.parts.contract import (
    Batch,
    BoundTask,
    ExamplesT,
    Metric,
    Outcomes,
    Outputs,
    Sum,
    Sums,
    Task,
)
from jaxft.tasks.parts.labels import Labels


class Target(Protocol):
    """How labels are read, and the loss, the metrics and the words that they give.

    Attributes:
        problem: Hugging Face's `problem_type`.
        primary, scores: see `primary` and `metrics` of `jaxft.tasks.parts.contract.Task`.
        columns: those of the source that hold the labels.
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
        """The model's outputs in order, from the training rows."""

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> Any:
        """A row's label as a number or several; raises BadValue where it has none."""

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        """Every row's label; raises a UserError that names the row where one is bad."""

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """See `jaxft.tasks.parts.contract.BoundTask`; so are `metrics` and `outcomes`."""

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums: ...

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]: ...

    def summarise(self, outcomes: Outcomes, labels: np.ndarray) -> dict[str, float]:
        """Scores of a whole evaluation."""

    def wrong(self, outcomes: Outcomes, labels: np.ndarray) -> np.ndarray:
        """Which examples are not as they should be: `[examples]` bool."""

    def said(
        self, number: int, outcomes: Outcomes, labels: np.ndarray | None, names: Sequence[str]
    ) -> dict[str, Any]:
        """What the model says of one example.

        Args:
            number: the example.
            outcomes: of every example.
            labels: `[examples, ...]`, or None.
            names: the model's outputs.

        Returns:
            `label` (of a number `value`) and `probabilities`, those of the 20 likeliest classes
            at most; with labels `label` is the true one, and `predicted` and `loss` stand beside.
        """


def make_target(section: Section) -> Target:
    """The target that a config's `task` section asks for."""
    if section.problem == "multi_label":
        return ManyLabels(section)
    assert isinstance(section.label, str)  # the config has seen to it
    kind = OneClass if section.problem == "single_label" else Number
    return kind(section, section.label)


@dataclass(frozen=True)
class TargetTask(Task):
    """What tasks that predict a target have in common: its labels and its scores.

    Args:
        section: the config's `task` section.
        target: what is predicted.
    """

    section: Section
    target: Target

    @property
    @abstractmethod
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the target is predicted from."""

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.input_columns

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


TargetTaskT = TypeVar("TargetTaskT", bound=TargetTask)


class BoundTargetTask(BoundTask[TargetTaskT, ExamplesT]):
    """What tasks that predict a target have in common on a model: loss, metrics and outcomes."""

    @property
    def target(self) -> Target:
        """What is predicted of an example."""
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

    def point_labels(self, examples: ExamplesT) -> list[tuple[str, ...]] | None:
        if examples.labels is None or self.target.problem != SINGLE_LABEL:
            return None
        return [(self.label_names[int(number)],) for number in examples.labels]
