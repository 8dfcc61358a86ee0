"""What a task is to the engine. One floor below the tasks, so that they and it can name it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxft.data.cache import Held, Ragged, build_or_open, cache_key
from jaxft.data.image.images import ImageProcessor, load_image_processor
from jaxft.data.sources.open import Source
from jaxft.data.text.tokenizer import Tokenizer, load_tokenizer
from jaxft.errors import UserError
from jaxft.models.model import Model

Batch = Mapping[str, Any]
Sums = dict[str, tuple[jax.Array, jax.Array]]
# Of metrics; of all others higher is better.
LOWER_IS_BETTER = (
    "loss",
    "perplexity",
    "pseudo_perplexity",
    "rmse",
    "bits_per_byte",
    "bits_per_dimension",
    "frechet_distance",
)


@dataclass(frozen=True)
class Tools:
    """What a checkpoint brings for reading data; each part is loaded when a task asks for it.

    Args:
        model: the model that will read the examples.
        asked_length: the most tokens of an example, where the config says so.
        cache: the folder of what is computed once per example; None keeps it in memory.
    """

    model: Model
    asked_length: int | None
    cache: Path | None

    @property
    def max_length(self) -> int:
        """The most tokens of an example: the config's number, else what the positions allow.

        Raises:
            UserError: the config asks for more than the model's positions hold.
        """
        asked, most = self.asked_length, self.model.max_positions
        if asked is not None and asked > most:
            raise UserError(
                f"data.max_length: {asked} tokens do not fit the model's {most} positions.",
                f"Set it to {most} or less; longer texts are cut there.",
            )
        return asked or most

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            UserError: it can give ids that the embeddings do not have.
        """
        found = load_tokenizer(self.model.tokenizer_folder)
        if found.vocab_size > self.model.vocab_size:
            raise UserError(
                f"model.checkpoint: the tokenizer knows {found.vocab_size:,} pieces and the model "
                f"has embeddings for {self.model.vocab_size:,}.",
                "If it is the model's own, model.resize_vocab=true adds the missing embeddings.",
            )
        return found

    @cached_property
    def images(self) -> ImageProcessor:
        """The checkpoint's image processor.

        Raises:
            UserError: the checkpoint has none, or one that is not known; or one whose pixels or
                colours are more than the model has embeddings for.
        """
        found = load_image_processor(self.model.source.folder, self.model.asked_size)
        if found.clusters is not None:
            _check_colours(found, self.model)
        return found

    def once(
        self,
        build: Callable[[], tuple[Iterable[Mapping[str, np.ndarray]], Mapping[str, Any]]],
        **key: Any,
    ) -> Ragged | Held:
        """Arrays per example, built unless an earlier run has cached them.

        Args:
            build: gives the examples, and what to keep of the whole (see `build_or_open`).
            key: all that the arrays depend on.
        """
        if self.cache is None:
            return Held(*build())
        return build_or_open(self.cache, cache_key(**key), build)


def _check_colours(processor: ImageProcessor, model: Model) -> None:
    """Raise a UserError where a model cannot read images as a processor's rows of colours."""
    (height, width), most = processor.size, model.max_positions
    if height * width > most:
        raise UserError(
            f"model.checkpoint: images of {height} x {width} are {height * width:,} pixels, and "
            f"the model has positions for {most:,}.",
            f"Set model.image_size to {math.isqrt(most)} or less.",
        )
    if (colours := len(processor.clusters or ())) >= model.vocab_size:
        raise UserError(
            f"model.checkpoint: the image processor has {colours:,} colours, and the model has "
            f"embeddings for {model.vocab_size - 1:,} and for what an image begins with.",
            "Take the preprocessor_config.json that it was made with.",
        )


class Examples(Protocol):
    """A source's rows as a task reads them, ready to be batched; pickled to where batches are made.

    Attributes:
        lengths: `[examples]` positions that each takes in a row; ones where a row is an example.
        labels: `[examples]` class ids, `[examples, C]` of 0 and 1, or `[examples]` numbers (float);
            None where there are none.
        counts: what a person should know of the whole: tokens, truncated, unknown.
        remarks: what a person should know of one example beside what the model says of it.
        fingerprint: changes with anything that the model's inputs depend on.
        image_size: height and width of the images in a batch; None where there are none.
        random: whether an example is another in each epoch (augmentation, masks). `collate` takes
            the `Draw` as a third argument then, and `scored()` gives the examples that an
            evaluation reads, which are always the same.
    """

    lengths: np.ndarray
    labels: np.ndarray | None
    counts: Mapping[str, int]
    remarks: Mapping[int, dict[str, Any]]
    fingerprint: str
    image_size: tuple[int, int] | None
    random: bool

    def __len__(self) -> int: ...

    def collate(self, index: np.ndarray, row_length: int) -> dict[str, np.ndarray]:
        """The arrays of one batch.

        Args:
            index: `[rows, segments]` example numbers, -1 for none.
            row_length: positions a row.

        Returns:
            `example_ids` (the index) and `weights` (1 for an example) `[R, S]`, and what the
            model and the loss read, `[R, ...]` each.
        """

    def without_images(self) -> Examples:
        """The same examples, whose batches bring no `pixel_values`: nothing is decoded.

        A batch that brings what a model's lower part made of its images needs no more of them.
        """


class Task(Protocol):
    """The columns it reads, its head, its loss and metrics, and what a person reads of it.

    Attributes:
        kind: the file's name in `tasks/`, and the head that the model gets.
        primary: the metric by which the best checkpoint is chosen.
        packs: several examples may share a row.
        metric_names: every name that `loss`, `metrics` and `summarise` can score.
        columns: the source columns it reads.

    A task that can leave bad rows out (`data.on_bad_row`) gives `check_row(source, index, row,
    names)` too, which raises what is wrong with a row; one that is scored by what the model writes
    gives `write(model, params, batch, compute)`, which adds to the outputs of an evaluation; one
    whose model draws pictures gives `sheet(outcomes, examples)`, those of an evaluation side by
    side; one whose loss Hugging Face names gives `problem_type`; one that reads whole rows of a
    file in `jaxft predict` gives `input_columns`.
    """

    kind: str
    primary: str
    metric_names: tuple[str, ...]
    packs: bool
    columns: tuple[str, ...]

    def label_names(self, source: Source) -> tuple[str, ...]:
        """The classes, in order of class id, from the training source; none where it has none."""

    def examples(self, source: Source, names: Sequence[str] | None, tools: Tools) -> Examples:
        """A source's rows as examples.

        Args:
            source: the rows.
            names: the classes; None for rows without labels.
            tools: what the checkpoint brings.

        Raises:
            UserError: a row that is not as it has to be.
        """

    def loss(self, outputs: Mapping[str, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The summed loss and its weight."""

    def metrics(self, outputs: Mapping[str, jax.Array], batch: Batch) -> Sums:
        """Streaming metrics as (sum, weight), cheap enough for every step."""

    def outcomes(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """What evaluation keeps of each example: arrays `[R, S, ...]`."""

    def summarise(
        self, outcomes: Mapping[str, np.ndarray], examples: Examples, names: Sequence[str]
    ) -> dict[str, float]:
        """Metrics of a whole evaluation that no sum can give, from `[examples, ...]` arrays."""

    def describe(
        self,
        source: Source,
        outcomes: Mapping[str, np.ndarray],
        examples: Examples,
        names: Sequence[str],
    ) -> Iterator[dict[str, Any]]:
        """What a person reads of each example, in order: what it is, and what the model says."""

    def rows_from_input(self, inputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """What a person typed, as source rows without labels."""
