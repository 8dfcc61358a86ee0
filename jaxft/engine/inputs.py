"""A run's splits: opened, and read as the task reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxft.data.sources.open import Source, open_mixture, open_source
from jaxft.errors import UserError, nearest
from jaxft.storage.files import cache_dir
from jaxft.tasks.parts.contract import BoundTask, Task
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.labels import BadValue

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Split:
    """One split, ready to be batched.

    Attributes:
        name: train, eval or test.
        source: its rows.
        examples: its rows as the task reads them.
        skipped: bad rows that were left out.
    """

    name: str
    source: Source
    examples: Examples
    skipped: int = 0

    @property
    def rows(self) -> np.ndarray:
        """The row of the source that each example is from: `[examples]`."""
        return self.examples.rows


def open_sources(
    task: Task, specs: Mapping[str, Sequence[str]], where: Mapping[str, Any], seed: int
) -> dict[str, Source]:
    """Every split that the config names.

    Args:
        task: says which columns are read.
        specs: split name -> source strings; several are mixed, none is no such split.
        where: column -> value or values that a row must have.
        seed: of the shuffle that slices are cut from.

    Raises:
        UserError: a missing file or column, or an empty split.
    """
    sources = {}
    for name, strings in specs.items():
        if not strings:
            continue
        if len(strings) == 1:
            sources[name] = open_source(strings[0], where=where, seed=seed)
        else:
            sources[name] = open_mixture(strings, where=where, seed=seed)
        for source in sources[name].mixed or (sources[name],):
            check_columns(source, task.columns)
    return sources


def check_columns(source: Source, columns: Iterable[str]) -> None:
    """Raise a UserError that names the nearest column and lists all where one is missing."""
    for column in columns:
        if column not in source.columns:
            close = [f"Did you mean '{name}'? " for name in nearest(column, source.columns)]
            raise UserError(
                f"{source.spec}: there is no column '{column}'.",
                "".join([*close, f"Its columns: {', '.join(source.columns)}."]),
            )


def open_splits(
    bound: BoundTask[Any, Any], sources: Mapping[str, Source], on_bad: str
) -> dict[str, Split]:
    """The rows of each source as the task reads them.

    Args:
        bound: the task on a model, which reads them.
        sources: split name -> rows.
        on_bad: `error` or `skip`.

    Raises:
        UserError: a bad row, where it is not to be skipped; a split to train on or to choose by
            with one class only.
    """
    splits = {}
    for name, source in sources.items():
        bad = bad_rows(bound, source) if on_bad == "skip" else []
        if len(bad) == len(source):
            raise UserError(
                f"{source.spec}: every row is bad.", "data.on_bad_row=error says what is wrong."
            )
        kept = source.without(bad)
        examples = bound.examples(kept)
        if name != "train":
            examples = examples.scored()
        splits[name] = Split(name, kept, examples, len(bad))
        only = only_class(splits[name], bound.label_names)
        if only is not None and name != "test":
            raise UserError(
                f"{source.spec}: the split has one class only ('{only}').",
                "Check data.where and the slice; slices are cut from a seeded shuffle.",
            )
    return splits


def bad_rows(bound: BoundTask[Any, Any], source: Source) -> list[int]:
    """The indices of the rows that a task cannot read."""
    found = []
    for index, row in source.each(bound.task.columns):
        try:
            bound.check_row(source, index, row)
        except (BadValue, UserError):
            found.append(index)
    return found


def only_class(split: Split, names: Sequence[str]) -> str | None:
    """The class of all of a split's examples; None where there are several, or no classes."""
    labels = split.examples.labels
    if labels is None or labels.ndim > 1 or labels.dtype.kind == "f":
        return None
    return names[int(labels[0])] if (labels == labels[0]).all() else None


def data_cache(folder: str | None) -> Path:
    """The folder of what is computed once per example: the config's, else the user's own."""
    return Path(folder) if folder else cache_dir() / "data"


def describe_split(split: Split, names: Sequence[str]) -> dict[str, Any]:
    """What a person should know of a split before training."""
    examples, labels = split.examples, {}
    if examples.labels is not None and (counted := _counted(examples.labels, len(names))):
        labels = dict(zip(names, counted, strict=True))
    about = {
        "split": split.name,
        "source": split.source.spec,
        "fingerprint": split.source.fingerprint,
        "examples": len(examples),
        "longest": int(examples.lengths.max()),
        **examples.counts,
        "labels": labels,
    }
    if split.skipped:
        about["skipped"] = split.skipped
    if only := only_class(split, names):
        about["note"] = f"all are '{only}', so that no score compares classes (AUROC and its kin)"
    return about


def _counted(labels: np.ndarray, classes: int) -> list[int]:
    """How many examples have each label; empty where the labels are numbers."""
    if labels.ndim > 1:
        return labels.astype(np.int64).sum(axis=0).tolist()
    return [] if labels.dtype.kind == "f" else np.bincount(labels, minlength=classes).tolist()


def with_inputs(
    batch: Mapping[str, Any], inputs: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Any]:
    """A batch with all that a model's stems read, also where it brings its trunk's output.

    Args:
        batch: whose `Examples.inputs` may be left out then.
        inputs: batch key -> shape of a row's.
    """
    # The stem reads only the shape of what is left out, and XLA drops the zeros.
    rows = len(batch["weights"])
    return {**batch} | {
        name: jnp.zeros((rows, *shape), jnp.float32)
        for name, shape in inputs.items()
        if name not in batch
    }
