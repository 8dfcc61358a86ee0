"""The contract of a task: abstract bases on which every member is declared.

A `Task` is the meaning of a config's `task` section, before data and model are known; bound to a
model and the classes of the data it is a `BoundTask`. R rows of a batch, S segments per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import jax
import numpy as np

from jaxft.config.fields import TaskSection
from jaxft.data.sources.source import Source
from jaxft.data.text.answers import Exchange
from jaxft.errors import UserError
from jaxft.models.generate.prompts import Images
from jaxft.models.model import Model
from jaxft.models.tower.tower import Compute
from jaxft.tasks.parts.arrays import Apply, Batch, Facts, Outcomes, Outputs, Params, Sum, Sums
from jaxft.tasks.parts.card import Card
from jaxft.tasks.parts.comparison import Comparison
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.metric import Metric
from jaxft.tasks.parts.tools import Tools

TaskT = TypeVar("TaskT", bound="Task")


@dataclass(frozen=True)
class Task(ABC):
    """A learning problem: its columns, the model's head, metrics, and their meaning.

    Args:
        section: the config's `task` section.

    Attributes:
        packs: several examples may share a row.
        truncates: inference truncates a text to the length of training, as training does.
        shows_attention: predictions with an image get an attention map (`BoundTask.pixels`).
        tags_tokens: the `targets` of a batch are classes of its tokens, not token ids.
    """

    section: TaskSection

    packs: ClassVar[bool] = False
    truncates: ClassVar[bool] = True
    shows_attention: ClassVar[bool] = False
    tags_tokens: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        """The name of the task's folder."""
        return self.section.kind

    @property
    def head(self) -> str | None:
        """The model's head, a key of a family's `model_types`; None for the bare stream."""
        return self.kind

    @property
    @abstractmethod
    def card(self) -> Card:
        """The task's line of the model card."""

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics of an evaluation; `loss` is one of them."""

    @property
    @abstractmethod
    def primary(self) -> str:
        """The metric that chooses the best checkpoint."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The source columns that training and evaluation read."""

    @property
    def input_columns(self) -> tuple[str, ...] | None:
        """The columns of a table that `jaxft predict` reads; None if it reads no tables."""
        return None

    @property
    def text_column(self) -> str | None:
        """The column of plain texts, if there is one."""
        return None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that `jaxft data describe` measures."""
        return self.input_columns or (() if self.text_column is None else (self.text_column,))

    @property
    def plain_text_column(self) -> str:
        """The column of plain texts in other sources than the task's own (`report.forgetting`)."""
        return self.text_column or "text"

    @property
    def label_column(self) -> str | None:
        """The column of the label, if there is exactly one."""
        return None

    @property
    def problem_type(self) -> str | None:
        """Hugging Face's name of the loss, for the config.json of an export."""
        return None

    @property
    def class_weights(self) -> str | Mapping[str | int, float] | None:
        """The weights of the classes in the loss; None if all are equal."""
        return None

    @property
    def prompt_prefix(self) -> str:
        """The prefix of every prompt in text generation."""
        return ""

    @property
    def view(self) -> str | None:
        """The part of the report's page that shows predictions: a key of its `LINES`, or None."""
        return None

    @property
    def searches(self) -> str | None:
        """The objects of `jaxft search`: `images` (by text or image), `texts`, or None."""
        return None

    def row_texts(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts of a row as the model reads them; by default none."""
        del row
        return ()

    def label_names(self, source: Source) -> tuple[str, ...]:
        """Return the classes of the training source, in order of class id; by default none."""
        del source
        return ()

    @property
    def facts(self) -> Facts:
        """The facts that `fitted` set, kept in `run.json`."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what `fitted` decided, for a person who starts a run; by default none."""
        return ()

    def fit(self, labels: np.ndarray | None, model: Model) -> Facts:
        """Compute what the task needs to know of the model and all training examples' labels."""
        del labels, model
        return {}

    def fitted(self: TaskT, facts: Facts) -> TaskT:
        """Return the task with what `fit` computed, perhaps for an earlier start of the run."""
        del facts
        return self

    def in_units(self, model: Model) -> Model:
        """Return a trained model whose outputs have the units of the data, for an export."""
        return model

    def export_files(self, model: Model, labels: Sequence[str]) -> Mapping[str, Facts]:
        """Return the JSON files of an export beside, or in place of, the model's own, by name."""
        del model, labels
        return {}

    @property
    @abstractmethod
    def bound(self) -> type[BoundTask[Any, Any]]:
        """The class of the task on a model."""

    def bind(self, tools: Tools, label_names: Sequence[str]) -> BoundTask[Any, Any]:
        """Bind the task to a model; a UserError if it does not support the task."""
        return self.bound(self, tools, label_names)


ExamplesT = TypeVar("ExamplesT", bound=Examples)


@dataclass(frozen=True)
class BoundTask(ABC, Generic[TaskT, ExamplesT]):
    """A task on a model: reads rows, computes the objective, describes predictions.

    Args:
        task: the learning problem.
        tools: the model, and the checkpoint's tools for reading data.
        label_names: the classes, in order of class id.
    """

    task: TaskT
    tools: Tools
    label_names: Sequence[str]

    @abstractmethod
    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        """Raise the error of an invalid row, so that `data.on_bad_row=skip` can leave it out."""

    @abstractmethod
    def examples(self, source: Source, *, labelled: bool = True) -> ExamplesT:
        """Read a source's rows as examples.

        Args:
            source: the rows.
            labelled: whether the rows have labels; inputs of `jaxft predict` have none.
        """

    def represent(
        self, params: Params, outputs: Outputs, batch: Batch, compute: Compute
    ) -> Outputs:
        """Compute what loss, metrics and outcomes read of the model's outputs; by default these."""
        del params, batch, compute
        return outputs

    def objective(self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        """Compute a batch's training `loss` and the metrics logged beside it: scalar sums, weights.

        Args:
            apply: parameters, batch and key -> the model's outputs; it may be called repeatedly.
            params: every parameter.
            batch: of `Examples.collate`, with a frozen model's outputs where a task reads any.
            key: turns dropout on; None in evaluation.
        """
        return self.sums(apply(params, batch, key), batch)

    def comparison(self, compute: Compute) -> Comparison | None:
        """Return how `sums` follow from representations if rows are compared; by default None."""
        return None

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Return the summed loss of an evaluation batch, and its weight."""

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """Return streaming metrics: sums and weights, scalars or arrays, cheap enough per step."""
        del outputs, batch
        return {}

    def sums(self, outputs: Outputs, batch: Batch) -> Sums:
        """Return the loss and the metrics of one forward pass."""
        return {"loss": self.loss(outputs, batch), **self.metrics(outputs, batch)}

    def generated(self, params: Params, batch: Batch, compute: Compute) -> Outputs:
        """Generate from an evaluation batch; the result joins the outputs of the forward pass."""
        del params, batch, compute
        return {}

    @abstractmethod
    def outcomes(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Return the arrays per example that an evaluation collects: `[R, S, ...]` each."""

    def summarise(self, outcomes: Outcomes, examples: ExamplesT) -> dict[str, float]:
        """Compute metrics of a whole evaluation that are no sums, from `[examples, ...]` arrays."""
        del outcomes, examples
        return {}

    def warnings(self, outcomes: Outcomes, examples: ExamplesT) -> list[str]:
        """Return a sentence for each reason to distrust the scores of a whole evaluation."""
        del outcomes, examples
        return []

    @abstractmethod
    def describe(
        self, source: Source, outcomes: Outcomes, examples: ExamplesT
    ) -> Iterator[dict[str, Any]]:
        """Yield a line of the predictions file for each example, in order."""

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Turn inputs of `jaxft predict` into source rows without labels; by default an error."""
        raise UserError(f"A run of {self.task.kind} predicts no label or value of a single input.")

    def prompts(self, inputs: Sequence[str]) -> tuple[list[list[int]], Images] | None:
        """Return the ids and images of inputs of `jaxft predict`; None if it reads them itself."""
        del inputs
        return None

    def sample_sheet(self, outcomes: Outcomes, examples: ExamplesT) -> np.ndarray | None:
        """Return the images generated in an evaluation side by side: `[H, W, 3]` uint8."""
        del outcomes, examples
        return None

    def exchanges(self, source: Source, examples: ExamplesT, most: int) -> Iterator[Exchange]:
        """Yield the first conversations without their last answer, and that answer."""
        del source, examples, most
        return iter(())

    def point_labels(self, examples: ExamplesT) -> list[tuple[str, ...]] | None:
        """Return the class of each vector of an example in the embedding plot; None for no plot."""
        del examples
        return None

    def pixels(self, source: Source, examples: ExamplesT, number: int) -> np.ndarray:
        """Return an example's image as the model's input, `[H, W, 3]` uint8 (`shows_attention`)."""
        raise NotImplementedError(f"{self.task.kind} shows no attention maps")
