"""What a task is to the engine. One floor below the tasks, so that they and it can name it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

Batch = Mapping[str, Any]
Sums = dict[str, tuple[jax.Array, jax.Array]]


class Task(Protocol):
    """The columns it reads, its head, its loss and metrics, and what a person reads of it.

    Attributes:
        kind: the file's name in `tasks/`, and the head that the model gets.
        primary: the metric by which the best checkpoint is chosen; higher is better.
        packs: several examples may share a row.
        metric_names: every name that `loss`, `metrics` and `summarise` can score.
        columns: the source columns it reads, the label last.
    """

    kind: str
    primary: str
    metric_names: tuple[str, ...]
    packs: bool
    columns: tuple[str, ...]

    def label_names(self, source: Any) -> tuple[str, ...]:
        """The classes, in order of class id, from the training source."""

    def label_ids(self, source: Any, names: Sequence[str]) -> np.ndarray:
        """Each example's label: `[examples]`. Raises UserError for a label not in `names`."""

    def encode(
        self, source: Any, tokenizer: Any, max_length: int
    ) -> tuple[list[dict[str, np.ndarray]], dict[str, int]]:
        """Every example's arrays, and counts: tokens, truncated, unknown."""

    def loss(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The summed loss and its weight."""

    def metrics(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
        """Streaming metrics as (sum, weight), cheap enough for every step."""

    def outcomes(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """What evaluation keeps of each example: arrays `[R, S, ...]`."""

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        """Metrics of a whole evaluation that no sum can give, from `[examples, ...]` arrays."""

    def describe(
        self, outcomes: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """What a person reads of each example's outcomes."""

    def rows_from_text(self, texts: Iterable[str]) -> list[dict[str, str]]:
        """Texts typed by a person, as source rows without labels."""
