"""A run's splits: opened, labelled, tokenised once into the cache, and turned into batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.cache import Ragged, build_or_open, cache_key
from jaxft.data.loader import collate_rows
from jaxft.data.sources import Source, open_source
from jaxft.data.text import Tokenizer
from jaxft.errors import UserError
from jaxft.files import cache_dir
from jaxft.tasks.contract import Task

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class LabelledSource:
    """One split's rows with each example's class id: `[examples]`."""

    source: Source
    labels: np.ndarray


@dataclass(frozen=True)
class Split:
    """One split, ready to be batched.

    Attributes:
        name: train, eval or test.
        source: its rows.
        labels: `[examples]` class ids.
        examples: each example's arrays, memory-mapped.
        counts: tokens, unknown, truncated, truncated_tokens.
    """

    name: str
    source: Source
    labels: np.ndarray
    examples: Ragged
    counts: Mapping[str, int]

    @property
    def lengths(self) -> np.ndarray:
        return self.examples.lengths


def open_labelled(
    task: Task, specs: Mapping[str, str | None], where: Mapping[str, Any], seed: int
) -> tuple[dict[str, LabelledSource], tuple[str, ...]]:
    """Open every split that the config names and label its rows.

    Args:
        task: says which columns hold what.
        specs: split name -> source string, or None where there is no such split.
        where: column -> value or values that a row must have.
        seed: of the shuffle that slices are cut from.

    Returns:
        The labelled sources, and the class names, which the train split decides.

    Raises:
        UserError: a missing file or column, an empty or one-class split, an unknown label.
    """
    sources = {
        name: open_source(spec, where=where, seed=seed) for name, spec in specs.items() if spec
    }
    for source in sources.values():
        check_columns(source, task.columns)
    names = task.label_names(sources["train"])
    return {
        name: LabelledSource(source, task.label_ids(source, names))
        for name, source in sources.items()
    }, names


def check_columns(source: Source, columns: Iterable[str]) -> None:
    """Raise a UserError that lists the source's columns where one is missing."""
    for column in columns:
        if column not in source.columns:
            raise UserError(
                f"{source.spec}: there is no column '{column}'.",
                f"Its columns: {', '.join(source.columns)}.",
            )


def encode_split(
    name: str,
    labelled: LabelledSource,
    task: Task,
    tokenizer: Tokenizer,
    max_length: int,
    cache: str | None,
) -> Split:
    """Tokenise a split, or open what an earlier run has cached of it."""
    source = labelled.source
    key = cache_key(
        kind="tokens",
        source=source.fingerprint,
        tokenizer=tokenizer.fingerprint,
        max_length=max_length,
        columns=task.columns,
    )
    root = Path(cache) if cache else cache_dir() / "data"
    # One pass both fills the cache and counts; what is cached carries its counts.
    examples = build_or_open(root, key, partial(task.encode, source, tokenizer, max_length))
    return Split(name, source, labelled.labels, examples, examples.meta)


def collate(
    examples: Ragged, labels: np.ndarray | None, index: np.ndarray, row_length: int
) -> dict[str, np.ndarray]:
    """The arrays of one batch.

    Args:
        examples: the split's examples.
        labels: `[examples]` class ids, or None for rows without labels.
        index: `[rows, segments]` example numbers, -1 for none.
        row_length: positions a row.

    Returns:
        `input_ids`, `token_type_ids`, `position_ids`, `segment_ids` `[R, T]`; `read_positions`,
        `weights`, `example_ids` and, with labels, `labels` `[R, S]`.
    """
    batch = collate_rows(examples, index, row_length)
    if labels is not None:
        batch["labels"] = np.where(index >= 0, labels[np.maximum(index, 0)], 0).astype(np.int32)
    return batch


def describe_split(split: Split, names: Sequence[str]) -> dict[str, Any]:
    """What a person should know of a split before training."""
    counted = np.bincount(split.labels, minlength=len(names))
    return {
        "split": split.name,
        "source": split.source.spec,
        "fingerprint": split.source.fingerprint,
        "examples": len(split.source),
        "longest": int(split.lengths.max()),
        **split.counts,
        "labels": {name: int(count) for name, count in zip(names, counted, strict=True)},
    }
