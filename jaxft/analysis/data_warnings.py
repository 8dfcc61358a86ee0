"""What in a run's rows would spoil it: rows that stand in two splits, classes that are rare."""

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
from jaxft.tasks.parts.contract import Task


def split_warnings(
    config: Config, task: Task, splits: Mapping[str, Split], labels: Mapping[str, Mapping[str, int]]
) -> dict[str, list[str]]:
    """What a person should know of each split before training: split name -> sentences.

    Args:
        config: the run.
        task: says which columns are read.
        splits: the rows.
        labels: split name -> label -> examples.
    """
    found: dict[str, list[str]] = {name: [] for name in splits}
    columns = tuple(getattr(task, "input_columns", task.columns))
    root = data_cache(config.data.cache)
    own = {name: _digests(split.source, columns, root) for name, split in splits.items()}
    for name in splits:
        if name != "train" and (said := leak(own[name], own["train"], splits[name].source)):
            found[name].append(said)
    if said := _imbalance(config, labels.get("train", {})):
        found["train"].append(said)
    return found


def leak(digests: np.ndarray, trained_on: np.ndarray, source: Source) -> str:
    """What is said of rows that are trained on too; nothing where there are none.

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
        f"{source.place(int(twice[0]))}), so that the score flatters"
    )


def _imbalance(config: Config, labels: Mapping[str, int]) -> str:
    mended = config.data.balance or getattr(config.task, "class_weights", None) is not None
    rare = rare_class(labels)
    if rare is None or mended or getattr(config.task, "problem", None) == "multi_label":
        return ""
    name, part = rare
    guessed = max(labels.values()) / sum(labels.values())
    return (
        f"'{name}' is {share(part)} of the examples, and guessing is right {share(guessed)} of the "
        "time: task.class_weights=balanced or data.balance=true makes up for it, and "
        "checkpoint.best=f1 or mcc tells it from guessing"
    )


def _digests(source: Source, columns: tuple[str, ...], root: Any) -> np.ndarray:
    """`row_digests`, computed once."""
    key = cache_key(kind="row digests", source=source.fingerprint, columns=columns)
    kept = build_or_open(root, key, lambda: ([{"digest": row_digests(source, columns)}], {}))
    return np.asarray(kept[0]["digest"])
