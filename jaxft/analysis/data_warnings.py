"""Data that would spoil a run: rows in two splits, rare classes, truncated or unknown texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.config.load import Config
from jaxft.data.cache import build_or_open, cache_key
from jaxft.data.profile import rare_class, row_digests
from jaxft.data.sources.source import Source
from jaxft.engine.inputs import Split, data_cache
from jaxft.numbers import share
from jaxft.tasks.parts.classes.many import MULTI_LABEL
from jaxft.tasks.parts.contract import BoundTask, Task
from jaxft.tasks.parts.tools import Tools

Facts = Mapping[str, Any]
# Shares from which on a person is warned.
MANY_CUT = 0.2  # of texts
MANY_LOST = 0.05  # of tokens
MANY_UNKNOWN = 0.05  # of tokens
MOST_NAMED = 5


def split_warnings(
    config: Config, bound: BoundTask[Any, Any], splits: Mapping[str, Split], about: Sequence[Facts]
) -> dict[str, list[str]]:
    """Collect the warnings of each split before training: split name -> sentences.

    Args:
        config: the run.
        bound: the task on its model; it says which columns are read.
        splits: the rows.
        about: of each split what `describe_split` gives.
    """
    task, labels = bound.task, {one["split"]: one["labels"] for one in about}
    warnings: dict[str, list[str]] = {name: [] for name in splits}
    columns = task.input_columns or task.columns
    root = data_cache(config.data.cache)
    own = {name: _digests(split.source, columns, root) for name, split in splits.items()}
    for name in splits:
        if name != "train" and (warning := leak(own[name], own["train"], splits[name].source)):
            warnings[name].append(warning)
    if warning := _imbalance(config, task, labels.get("train", {})):
        warnings["train"].append(warning)
    if len(splits["train"].examples) < config.data.batch_size:
        warnings["train"].append(
            f"data.batch_size={config.data.batch_size} is more than the "
            f"{len(splits['train'].examples):,} examples there are: each step holds all of them"
        )
    for one in about:
        warnings[one["split"]] += splits[one["split"]].examples.warnings
        warnings[one["split"]] += text_warnings(one, bound.tools)
        if lacking := _lacking(one, labels.get("train", {})):
            warnings[one["split"]].append(lacking)
    return warnings


def text_warnings(about: Facts, tools: Tools) -> list[str]:
    """Warn of texts that are truncated and of tokens that the tokenizer does not know.

    Args:
        about: `examples`, and the counts of a tokenizer (`Encoded.counts`), of a split.
        tools: the lengths.
    """
    if "truncated_tokens" not in about:
        return []
    warnings, tokens = [], max(about["tokens"], 1)
    cut, lost = about["truncated"] / about["examples"], about["truncated_tokens"]
    if cut >= MANY_CUT or lost / (tokens + lost) >= MANY_LOST:
        length, most = tools.max_length, tools.model.max_positions
        mend = (
            f"data.max_length can be up to {most:,}"
            if length < most
            else "shorten the texts to the relevant part, or use a checkpoint with more positions"
        )
        warnings.append(
            f"{share(cut)} of the texts are longer than {length:,} tokens and lose "
            f"{share(lost / (tokens + lost))} of all tokens: {mend}"
        )
    if about["unknown"] / tokens >= MANY_UNKNOWN:
        warnings.append(
            f"{share(about['unknown'] / tokens)} of the tokens are unknown to the tokenizer: check "
            "that it is the checkpoint's own (vocabulary, do_lower_case), or use a checkpoint for "
            "these texts"
        )
    return warnings


def _lacking(about: Facts, trained_on: Mapping[str, int]) -> str:
    """Warn of classes of the train split that another split has no example of."""
    labels = about["labels"]
    names = [name for name, many in trained_on.items() if many and not labels.get(name)]
    if about["split"] == "train" or not names or sum(map(bool, labels.values())) < 2:
        return ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    named = ", ".join(f"'{name}'" for name in names[:MOST_NAMED])
    return f"no example is {named}{more}: a larger slice has some"


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
