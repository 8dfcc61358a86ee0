"""The contract of a task: abstract bases on which every member is declared.

A `Task` is what a config's `task` section asks for, before data and model are known. Bound to a
model and the classes of the data it is a `BoundTask`, which reads rows, computes the objective and
describes what a model predicts.

R rows of a batch, S segments a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from jaxft.data.sources.open import Source
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.tools import Tools

Params = Mapping[str, jax.Array]
Batch = Mapping[str, Any]
Outputs = Mapping[str, jax.Array]
Outcomes = Mapping[str, np.ndarray]
Sum = tuple[jax.Array, jax.Array]  # a sum and its weight
Sums = dict[str, Sum]
# The model's outputs for a batch; with a key there is dropout.
Apply = Callable[[Params, Batch, jax.Array | None], Outputs]


def mean(total: np.ndarray, weight: np.ndarray) -> float:
    """A sum over its weight."""
    return float(total) / float(weight)


@dataclass(frozen=True)
class Metric:
    """A score: which way is better, and how the sums of a split's batches become it.

    Args:
        lower_is_better: whether a lower score is better.
        reduce: (sum, weight) over all batches, float64, to the score. A sum may be an array, such
            as a confusion matrix, which takes a reduction of its own.
        stream: the name of the sum in `BoundTask.sums`; None for the metric's own.
    """

    lower_is_better: bool = False
    reduce: Callable[[np.ndarray, np.ndarray], float] = mean
    stream: str | None = None


HIGHER, LOWER = Metric(), Metric(lower_is_better=True)


@dataclass(frozen=True)
class Card:
    """A task's line of the model card.

    Args:
        pipeline: the hub's name of the task (`pipeline_tag`).
        auto_class: the class of `transformers` that loads an export.
    """

    pipeline: str
    auto_class: str


class Task(ABC):
    """What is learned: the columns it reads, the model's head, metrics, and what they mean."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name of the task's folder."""

    @property
    @abstractmethod
    def head(self) -> str | None:
        """The model's head, a key of a family's `MODEL_TYPES[...]`; None for the bare stream."""

    @property
    @abstractmethod
    def card(self) -> Card:
        """What the model card says of an export."""

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """Every score that an evaluation gives; `loss` among them."""

    @property
    @abstractmethod
    def primary(self) -> str:
        """The metric by which the best checkpoint is chosen."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The source columns that training and evaluation read."""

    @property
    def input_columns(self) -> tuple[str, ...] | None:
        """The columns of a table's row that `jaxft predict` reads; None where it takes no rows."""
        return None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns of texts that `jaxft data describe` looks at."""
        return ()

    @property
    def label_column(self) -> str | None:
        """The one column that holds the label, where there is one."""
        return None

    @property
    def plain_text_column(self) -> str:
        """The column of plain texts in a source beside the task's own (`report.forgetting`)."""
        return "text"

    @property
    def packs(self) -> bool:
        """Whether several examples may share a row."""
        return False

    @property
    def problem_type(self) -> str | None:
        """Hugging Face's name of the loss, where an export's config.json says it."""
        return None

    @property
    def class_weights(self) -> str | Mapping[str | int, float] | None:
        """What examples of a class count in the loss; None where all count the same."""
        return None

    @property
    def prompt_prefix(self) -> str:
        """What every prompt begins with where the model generates."""
        return ""

    @property
    def view(self) -> str | None:
        """The part of the report's page that shows predictions: a key of its `LINES`, or None."""
        return None

    @property
    def shows_attention(self) -> bool:
        """Whether predictions with a picture get a map of where the model looks (`pixels`)."""
        return False

    @property
    def searches(self) -> str | None:
        """What `jaxft search` finds with a run: `images` (by text or image), `texts`, or None."""
        return None

    def label_names(self, source: Source) -> tuple[str, ...]:
        """The classes, in order of class id, from the training source; none where it has none."""
        del source
        return ()

    @abstractmethod
    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundTask[Any, Any]:
        """The task on a model.

        Args:
            tools: the model, and what its checkpoint brings for reading data.
            label_names: the classes.

        Raises:
            UserError: the model cannot serve the task.
        """


TaskT = TypeVar("TaskT", bound=Task)
ExamplesT = TypeVar("ExamplesT", bound=Examples)


@dataclass(frozen=True)
class BoundTask(ABC, Generic[TaskT, ExamplesT]):
    """A task on a model: reads rows, computes the objective, describes predictions.

    Args:
        task: what is learned.
        tools: the model, and what its checkpoint brings for reading data.
        label_names: the classes, in order of class id.
    """

    task: TaskT
    tools: Tools
    label_names: Sequence[str]

    @abstractmethod
    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise what is wrong with a row, so that `data.on_bad_row=skip` can leave it out."""

    @abstractmethod
    def examples(self, source: Source, *, labelled: bool = True) -> ExamplesT:
        """A source's rows as examples.

        Args:
            source: the rows.
            labelled: whether the rows have labels; what a person typed has none.

        Raises:
            UserError: a row that is not as it has to be.
        """

    def objective(self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        """The training `loss` of a batch and metrics to log beside it: sums and weights, scalars.

        Without another objective it is the sums of one forward pass.

        Args:
            apply: the model's outputs for parameters, a batch and a key; call it as often as the
                objective needs.
            params: every parameter.
            batch: what `Examples.collate` gave; the outputs of a frozen model, a reference or a
                teacher, are among it (`jaxft.tasks.parts.frozen_outputs`).
            key: turns dropout on.
        """
        return self.sums(apply(params, batch, key), batch)

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """The summed loss of an evaluation's batch, and its weight."""

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """Metrics that stream: sums and weights, scalars or arrays, cheap enough for a step."""
        del outputs, batch
        return {}

    def sums(self, outputs: Outputs, batch: Batch) -> Sums:
        """The loss and the metrics of one forward pass."""
        return {"loss": self.loss(outputs, batch), **self.metrics(outputs, batch)}

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """What the model generates for an evaluation's batch; joins the outputs of its forward."""
        del params, batch, compute
        return {}

    @abstractmethod
    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """What evaluation keeps of each example: arrays `[R, S, ...]`."""

    def summarise(self, outcomes: Outcomes, examples: ExamplesT) -> dict[str, float]:
        """Metrics of a whole evaluation that no sum can give, from `[examples, ...]` arrays."""
        del outcomes, examples
        return {}

    @abstractmethod
    def describe(
        self, source: Source, outcomes: Outcomes, examples: ExamplesT
    ) -> Iterator[dict[str, Any]]:
        """A line of the predictions file for each example, in order."""

    @abstractmethod
    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """What a person typed, as source rows without labels.

        Raises:
            UserError: the task predicts nothing of an input by itself.
        """

    def sample_sheet(self, outcomes: Outcomes, examples: ExamplesT) -> np.ndarray | None:
        """The images that were generated at an evaluation, side by side: `[H, W, 3]` uint8."""
        del outcomes, examples
        return None

    def exchanges(
        self, source: Source, examples: ExamplesT, most: int
    ) -> Iterator[tuple[Sequence[Any], str]]:
        """The first conversations, each without its last answer, and that answer."""
        del source, examples, most
        return iter(())

    def point_labels(self, examples: ExamplesT) -> list[tuple[str, ...]] | None:
        """The class of each point of an example where embeddings are shown; None shows none."""
        del examples
        return None

    def pixels(self, source: Source, examples: ExamplesT, number: int) -> np.ndarray:
        """An example's image as the model sees it, `[H, W, 3]` uint8: see `shows_attention`."""
        raise NotImplementedError(f"{self.task.kind} shows no attention maps")
