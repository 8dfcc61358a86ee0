"""Splits of a run: their sources, opened, and their rows, read by the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.config.data import DataSection
from jaxft.data.shares import Share
from jaxft.data.sources.open import open_mixture, open_source
from jaxft.data.sources.source import Source
from jaxft.device.distributed import gather, processes
from jaxft.errors import UserError, nearest
from jaxft.storage.files import cache_dir
from jaxft.tasks.parts.contract import BoundTask, Facts, Task
from jaxft.tasks.parts.examples import Examples
from jaxft.tasks.parts.labels import BadValue

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True)
class Split:
    """Split of a data set, ready for batching.

    Attributes:
        name: train, eval or test.
        source: its rows.
        examples: its rows, read by the task.
        skipped: the number of bad rows that were left out.
    """

    name: str
    source: Source
    examples: Examples
    skipped: int = 0

    @property
    def rows(self) -> np.ndarray:
        """Row of the source that each example is from: `[examples]`."""
        return self.examples.rows


def open_sources(
    task: Task,
    specs: Mapping[str, Sequence[str]],
    where: Mapping[str, Any],
    seed: int,
    image_folder: str | None = None,
) -> dict[str, Source]:
    """Open every split that the config names.

    Args:
        task: its `columns` are read.
        specs: split name -> source strings; several are mixed, none means no such split.
        where: column -> value or values that a row must have.
        seed: of the shuffle that precedes slicing.
        image_folder: a folder that image paths may lead into, besides their table's own.

    Raises:
        UserError: a missing file or column, or an empty split.
    """
    sources = {}
    options: dict[str, Any] = {"where": where, "seed": seed, "image_folder": image_folder}
    for name, strings in specs.items():
        if not strings:
            continue
        if len(strings) == 1:
            sources[name] = open_source(strings[0], **options)
        else:
            sources[name] = open_mixture(strings, **options)
        for source in sources[name].mixed or (sources[name],):
            check_columns(source, task.columns)
        sources[name] = sources[name].with_fields(task.columns)
    return sources


def check_columns(source: Source, columns: Iterable[str]) -> None:
    """Raise a UserError that names the nearest column and lists all where one is missing."""
    for column in columns:
        if not source.has(column):
            close = [f"Did you mean '{name}'? " for name in nearest(column, source.columns)]
            raise UserError(
                f"{source.spec}: there is no column '{column}'.",
                "".join([*close, f"Its columns: {', '.join(source.columns)}."]),
            )


def open_splits(
    bound: BoundTask[Any, Any], sources: Mapping[str, Source], data: DataSection
) -> dict[str, Split]:
    """Read the rows of each source with the task; of training rows each host reads its share.

    Args:
        bound: the task on a model.
        sources: split name -> rows.
        data: the config's, which says what becomes of bad rows.

    Raises:
        UserError: a bad row that may not be skipped; or a train or eval split with only one class.
    """
    splits = {}
    for name, source in sources.items():
        bad = bad_rows(bound, source) if data.on_bad_row == "skip" else []
        if len(bad) == len(source):
            raise UserError(
                f"{source.spec}: no row can be read.", "Set data.on_bad_row=error to see why."
            )
        readable = source.without(bad)
        reader = by_host(bound) if name == "train" and not data.workers else bound
        examples = reader.examples(readable)
        if name != "train":
            examples = examples.scored()
        splits[name] = Split(name, readable, examples, len(bad))
        only = only_class(splits[name], bound.label_names)
        if only is not None and name != "test":
            raise UserError(
                f"{source.spec}: the split has only one class ('{only}').",
                "Check data.where and the slice; slices are cut from a seeded shuffle.",
            )
    return splits


def by_host(bound: BoundTask[Any, Any]) -> BoundTask[Any, Any]:
    """Return the task with this host's share of a split's rows; itself on one host."""
    if processes() == 1:
        return bound
    share = Share(jax.process_index(), processes(), gather)
    return replace(bound, tools=replace(bound.tools, share=share))


def fit_task(bound: BoundTask[Any, Any], train: Split, facts: Facts | None) -> BoundTask[Any, Any]:
    """Give a task what it has to know of the training rows; None computes it from them."""
    task = bound.task
    known = task.fit(train.examples.labels, bound.tools.model) if facts is None else facts
    return replace(bound, task=task.fitted(known))


def bad_rows(bound: BoundTask[Any, Any], source: Source) -> list[int]:
    """List the indices of the rows that a task cannot read."""
    indices = []
    for index, row in source.each(bound.task.columns):
        try:
            bound.check_row(source, index, row)
        except (BadValue, UserError):
            indices.append(index)
    return indices


def only_class(split: Split, names: Sequence[str]) -> str | None:
    """Return the class that all examples of a split have; None if they differ or have none."""
    labels = split.examples.labels
    if labels is None or labels.ndim > 1 or labels.dtype.kind == "f":
        return None
    return names[int(labels[0])] if (labels == labels[0]).all() else None


def data_cache(folder: str | None) -> Path:
    """Return the folder for data computed once per example: the config's, or the default."""
    return Path(folder).expanduser() if folder else cache_dir() / "data"


def describe_split(split: Split, names: Sequence[str]) -> dict[str, Any]:
    """Describe a split for `run.json` and the terminal."""
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
        about["note"] = f"all are '{only}', so AUROC and similar metrics are undefined"
    return about


def _counted(labels: np.ndarray, classes: int) -> list[int]:
    """Count the examples of each label; empty where labels are numbers."""
    if labels.ndim > 1:
        return labels.astype(np.int64).sum(axis=0).tolist()
    return [] if labels.dtype.kind == "f" else np.bincount(labels, minlength=classes).tolist()


def with_inputs(
    batch: Mapping[str, Any], inputs: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Any]:
    """Complete a batch with all arrays that a model's stems expect.

    Args:
        batch: a batch; one with cached trunk output may lack `Examples.inputs`.
        inputs: batch key -> shape of one row.
    """
    # With a cached trunk the stem reads only the shapes of these, and XLA removes the zeros.
    rows = len(batch["weights"])
    return {**batch} | {
        name: jnp.zeros((rows, *shape), jnp.float32)
        for name, shape in inputs.items()
        if name not in batch
    }
