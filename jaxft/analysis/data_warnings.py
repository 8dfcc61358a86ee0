"""Rows that would spoil a run: rows in two splits, rare classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.config.load import Config
from jaxft.data.cache import build_or_open, cache_key
from jaxft.data.profile import rare_class, row_digests
from jaxft.data.sources.open import Source
from jaxft.engine.inputs import Split, data_cache
from jaxft.numbers import share
from jaxft.tasks.parts.classes.many import MULTI_LABEL
from jaxft.tasks.parts.contract import Task


def split_warnings(
    config: Config, task: Task, splits: Mapping[str, Split], labels: Mapping[str, Mapping[str, int]]
) -> dict[str, list[str]]:
    """Collect the warnings of each split before training: split name -> sentences.

    Args:
        config: the run.
        task: says which columns are read.
        splits: the rows.
        labels: split name -> label -> examples.
    """
    warnings: dict[str, list[str]] = {name: [] for name in splits}
    columns = task.input_columns or task.columns
    root = data_cache(config.data.cache)
    own = {name: _digests(split.source, columns, root) for name, split in splits.items()}
    for name in splits:
        if name != "train" and (warning := leak(own[name], own["train"], splits[name].source)):
            warnings[name].append(warning)
    if warning := _imbalance(config, task, labels.get("train", {})):
        warnings["train"].append(warning)
    return warnings


def leak(digests: np.ndarray, trained_on: np.ndarray, source: Source) -> str:
    """Warn of rows that are trained on too; empty where there are none.

    Args:
        digests, trained_on: `[rows]` of `source` and of the rows to train on (`row_digests`).
        source: the rows, to name one.
    """
    twice = np.flatnonzero(np.isin(digests, trained_on))
    if not len(twice):
        return ""
    rows = "1 row is" if len(twice) == 1 else f"{len(twice):,} rows are"
    return (
        f"{rows} in train too ({share(len(twice) / len(digests))}, such as "
        f"{source.place(int(twice[0]))}), so the score is optimistic"
    )


def _imbalance(config: Config, task: Task, labels: Mapping[str, int]) -> str:
    mended = config.data.balance or task.class_weights is not None
    rare = rare_class(labels)
    if rare is None or mended or task.problem_type == MULTI_LABEL:
        return ""
    name, part = rare
    guessed = max(labels.values()) / sum(labels.values())
    return (
        f"'{name}' is {share(part)} of the examples, and guessing is right {share(guessed)} of the "
        "time: task.class_weights=balanced or data.balance=true compensates for it, and "
        "checkpoint.best=f1 or mcc is a better metric"
    )


def _digests(source: Source, columns: tuple[str, ...], root: Any) -> np.ndarray:
    """`row_digests`, computed once."""
    key = cache_key(kind="row digests", source=source.fingerprint, columns=columns)
    cached = build_or_open(root, key, lambda: ([{"digest": row_digests(source, columns)}], {}))
    return np.asarray(cached[0]["digest"])
