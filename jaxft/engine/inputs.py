"""A run's splits: opened, and read as the task reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.data.sources import Source, open_source
from jaxft.errors import UserError
from jaxft.files import cache_dir
from jaxft.tasks.contract import Examples, Task

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Split:
    """One split, ready to be batched.

    Attributes:
        name: train, eval or test.
        source: its rows.
        examples: its rows as the task reads them.
    """

    name: str
    source: Source
    examples: Examples


def open_sources(
    task: Task, specs: Mapping[str, str | None], where: Mapping[str, Any], seed: int
) -> dict[str, Source]:
    """Every split that the config names.

    Args:
        task: says which columns are read.
        specs: split name -> source string, or None where there is no such split.
        where: column -> value or values that a row must have.
        seed: of the shuffle that slices are cut from.

    Raises:
        UserError: a missing file or column, or an empty split.
    """
    sources = {
        name: open_source(spec, where=where, seed=seed) for name, spec in specs.items() if spec
    }
    for source in sources.values():
        check_columns(source, task.columns)
    return sources


def check_columns(source: Source, columns: Iterable[str]) -> None:
    """Raise a UserError that lists the source's columns where one is missing."""
    for column in columns:
        if column not in source.columns:
            raise UserError(
                f"{source.spec}: there is no column '{column}'.",
                f"Its columns: {', '.join(source.columns)}.",
            )


def data_cache(folder: str | None) -> Path:
    """The folder of what is computed once per example: the config's, else the user's own."""
    return Path(folder) if folder else cache_dir() / "data"


def describe_split(split: Split, names: Sequence[str]) -> dict[str, Any]:
    """What a person should know of a split before training."""
    examples, labels = split.examples, {}
    if examples.labels is not None:
        counted = np.bincount(examples.labels, minlength=len(names))
        labels = {name: int(count) for name, count in zip(names, counted, strict=True)}
    return {
        "split": split.name,
        "source": split.source.spec,
        "fingerprint": split.source.fingerprint,
        "examples": len(examples),
        "longest": int(examples.lengths.max()),
        **examples.counts,
        "labels": labels,
    }
