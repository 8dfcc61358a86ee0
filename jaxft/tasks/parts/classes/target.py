"""What is told of an example, as `task.problem` asks: a class, several labels, or a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxft.data.sources.open import Source
from jaxft.tasks.parts.classes.many import ManyLabels
from jaxft.tasks.parts.classes.number import Number
from jaxft.tasks.parts.classes.one import Batch, OneClass, Outcomes, Outputs, Section
from jaxft.tasks.parts.contract import Examples
from jaxft.tasks.parts.labels import Labels


class Target(Protocol):
    """How labels are read, and the loss, the metrics and the words that they give.

    Attributes:
        problem: Hugging Face's `problem_type`.
        primary, metric_names: see `jaxft.tasks.parts.contract.Task`.
        columns: those of the source that hold the labels.
    """

    @property
    def problem(self) -> str: ...

    @property
    def primary(self) -> str: ...

    @property
    def metric_names(self) -> tuple[str, ...]: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def names(self, source: Source) -> tuple[str, ...]:
        """The model's outputs in order, from the training rows."""

    def parse(self, row: Mapping[str, Any], names: Sequence[str]) -> Any:
        """A row's label as a number or several; raises BadValue where it has none."""

    def read(self, source: Source, names: Sequence[str]) -> Labels:
        """Every row's label; raises a UserError that names the row where one is bad."""

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """See `jaxft.tasks.parts.contract.Task`; so are `metrics` and `outcomes`."""

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]: ...

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
class TargetTask(ABC):
    """What is the same of all tasks that tell a target; see `jaxft.tasks.parts.contract.Task`.

    Args:
        target: what is told.
    """

    target: Target

    @property
    @abstractmethod
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the target is told from."""

    @property
    def problem_type(self) -> str:
        """What the export's config.json calls the loss."""
        return self.target.problem

    @property
    def primary(self) -> str:
        return self.target.primary

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.target.metric_names

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.input_columns, *self.target.columns)

    def label_names(self, source: Source) -> tuple[str, ...]:
        return self.target.names(source)

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return self.target.loss(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
        return self.target.metrics(outputs, batch)

    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        return self.target.outcomes(outputs, batch)

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Examples, names: Sequence[str]
    ) -> dict[str, float]:
        del names
        labels = examples.labels
        return {} if labels is None else self.target.summarise(outcomes, labels)
