"""Knowledge distillation: a text classifier learns from labels and from a larger classifier.

The teacher is frozen: its logits are computed once per example, before training, and cached. It
reads the texts with its own tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.data.random import FIRST_EPOCH, EpochRandom
from jaxft.data.sources.source import Source
from jaxft.errors import UserError
from jaxft.models.load import LoadOptions, describe
from jaxft.models.model import Model
from jaxft.tasks.distillation.loss import divergences
from jaxft.tasks.distillation.section import DistillationSection as Section
from jaxft.tasks.parts.card import APPLY, READ_TEXT, Card
from jaxft.tasks.parts.classes.one import logits_of
from jaxft.tasks.parts.classes.target import BoundTargetTask, TargetTask
from jaxft.tasks.parts.contract import Batch, Outcomes, Outputs, Sum, Sums
from jaxft.tasks.parts.examples import values_of
from jaxft.tasks.parts.frozen_outputs import frozen_outputs
from jaxft.tasks.parts.metric import HIGHER, LOWER, Metric
from jaxft.tasks.parts.tools import Tools
from jaxft.tasks.text_classification.section import TextClassificationSection
from jaxft.tasks.text_classification.task import (
    BoundTextClassification,
    TextClassification,
    TextExamples,
)
from jaxft.tasks.text_classification.task import make as make_texts

TEACHER = "teacher_logits"  # of a batch: [R, S, C] float32, in the student's order of classes
OWN = {
    "kind",
    "teacher",
    "temperature",
    "alpha",
}  # keys that text_classification lacks or defines differently


def make(section: Section) -> Distillation:
    """Make the task as the config's `task` section describes it.

    Raises:
        UserError: `task.template` is invalid.
    """
    shared = section.model_dump(exclude=OWN)
    texts = make_texts(TextClassificationSection(kind="text_classification", **shared))
    return Distillation(section, texts.target, texts)


@dataclass(frozen=True)
class DistillationExamples(TextExamples):
    """Texts with labels and the teacher's logits; see `jaxft.tasks.parts.examples.Examples`.

    Args:
        teacher: `[examples, C]` float32; None for texts without labels.
    """

    teacher: np.ndarray | None

    def collate(
        self, index: np.ndarray, row_length: int, epoch_random: EpochRandom = FIRST_EPOCH
    ) -> dict[str, np.ndarray]:
        batch = self.text_batch(index, row_length)
        if self.teacher is None:
            return batch
        return batch | {TEACHER: values_of(self.teacher, index).astype(np.float32)}


class BoundDistillation(BoundTargetTask["Distillation", DistillationExamples]):
    """`Distillation` on a model."""

    def check_row(self, source: Source, number: int, row: Mapping[str, Any]) -> None:
        self._texts.check_row(source, number, row)

    def examples(self, source: Source, *, labelled: bool = True) -> DistillationExamples:
        texts = self._texts.examples(source, labelled=labelled)
        return DistillationExamples(
            texts.tokens, texts.labelled, self._teacher_logits(source) if labelled else None
        )

    def loss(self, outputs: Outputs, batch: Batch) -> Sum:
        """Sum (1 - alpha) cross-entropy + alpha T^2 KL(teacher_T || student_T); and the weight."""
        alpha = self.task.section.alpha
        labels, weight = self.target.loss(outputs, batch)
        return (1 - alpha) * labels + alpha * self._divergence(outputs, batch), weight

    def metrics(self, outputs: Outputs, batch: Batch) -> Sums:
        """Return both parts of the loss, and how often student and teacher agree on the class."""
        cross_entropy, weight = self.target.loss(outputs, batch)
        choices = (jnp.argmax(one, -1) for one in (logits_of(outputs, batch), batch[TEACHER]))
        same, weights = jnp.equal(*choices), batch["weights"]  # [R, S]
        return {
            **self.target.metrics(outputs, batch),
            "cross_entropy": (cross_entropy, weight),
            "divergence": (self._divergence(outputs, batch), weight),
            "teacher_agreement": (jnp.sum(same * weights), jnp.sum(weights)),
        }

    def _divergence(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """Sum T^2 KL over a batch, with the example weights of the cross-entropy."""
        weights = batch["weights"] * batch.get("loss_weights", 1.0)
        logits, temperature = logits_of(outputs, batch), self.task.section.temperature
        return jnp.sum(divergences(batch[TEACHER], logits, temperature) * weights)

    def describe(
        self, source: Source, outcomes: Outcomes, examples: DistillationExamples
    ) -> Iterator[dict[str, Any]]:
        return self._texts.describe(source, outcomes, examples)

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        return self._texts.rows_from_input(inputs)

    @property
    def _texts(self) -> BoundTextClassification:
        """Text classification on this model, without a teacher."""
        return BoundTextClassification(self.task.texts, self.tools, self.label_names)

    def _teacher_logits(self, source: Source) -> np.ndarray:
        """Return the teacher's logits of a source's rows, classes in the student's order."""
        teacher = self._teacher
        texts = BoundTextClassification(self.task.texts, teacher, teacher.model.labels or ())
        outputs = frozen_outputs(
            teacher,
            teacher.model,
            texts.examples(source, labelled=False),
            _teacher_arrays,
            kind="teacher logits",
        )
        logits = np.concatenate([outputs[number]["logits"] for number in range(len(outputs))])
        order = [texts.label_names.index(name) for name in self.label_names]
        return logits[:, order]

    @cached_property
    def _teacher(self) -> Tools:
        """The teacher, with its own tokenizer.

        Raises:
            UserError: it is not a trained classifier, or has other classes.
        """
        own = self.tools
        options = LoadOptions(task=self.task.head)
        model = describe(self.task.section.teacher, options, weights=own.weights)
        _check_teacher(self.task.section.teacher, model, self.label_names, own.weights)
        length = own.asked_length and min(own.asked_length, model.max_positions)
        return Tools(model, length, own.cache, own.weights)


def _check_teacher(name: str, model: Model, label_names: Sequence[str], weights: bool) -> None:
    """Raise a UserError if a teacher is not a trained classifier of the student's classes.

    Without `weights` only its config is read, which does not say whether it is trained.
    """
    if weights and (new := model.report.new):
        raise UserError(
            f"task.teacher: '{name}' is not a trained classifier: it lacks '{new[0]}'.",
            "Train one with task.kind=text_classification, and name its export.",
        )
    if set(model.labels or ()) != set(label_names):
        raise UserError(
            f"task.teacher: the classes of '{name}' ({', '.join(model.labels or ())}) are not the "
            f"student's ({', '.join(label_names)}).",
            "The names have to be the same, in any order: see id2label in the teacher's "
            "config.json, and task.labels.",
        )


def _teacher_arrays(outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
    """Return the logits of a batch of one text per row: `[R, C]` float32."""
    return {"logits": logits_of(outputs, batch)[:, 0]}


@dataclass(frozen=True)
class Distillation(TargetTask):
    """One label for a text, learned from the labels and from a teacher's probabilities.

    Args:
        texts: text classification, which reads the rows.
    """

    section: Section
    texts: TextClassification

    head = "text_classification"
    bound = BoundDistillation
    card = Card(
        "text-classification",
        "AutoModelForSequenceClassification",
        (READ_TEXT, APPLY, "print(outputs.logits)"),
    )
    packs = True

    @property
    def metrics(self) -> Mapping[str, Metric]:
        parts = {"cross_entropy": LOWER, "divergence": LOWER, "teacher_agreement": HIGHER}
        return {**self.target.scores, **parts}

    @property
    def input_columns(self) -> tuple[str, ...]:
        return self.texts.input_columns

    @property
    def text_column(self) -> str:
        return self.section.text
