"""The story of looking at data: what the rows are, and whether a checkpoint suits them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from jaxft.analysis.checkpoint_fit import hold_against
from jaxft.analysis.data_warnings import leak
from jaxft.config.load import load_config
from jaxft.data.profile import (
    TextColumns,
    guess_columns,
    profile,
    rare_class,
    row_digests,
    texts_of,
)
from jaxft.data.sources.open import open_source
from jaxft.data.sources.reader import Row
from jaxft.data.sources.source import Source
from jaxft.engine.inputs import check_columns, open_sources
from jaxft.engine.setup import make_task
from jaxft.errors import UserError
from jaxft.numbers import share
from jaxft.report.terminal.data import description_tables
from jaxft.tasks.parts.classes.number import Number
from jaxft.tasks.parts.contract import Task

CONFIGS = (".yaml", ".yml")


@dataclass(frozen=True)
class DataDescription:
    """Description of a source: its splits, repeated rows and fit to a checkpoint.

    Attributes:
        splits: of each, what `profile` gives, its `split` and `warnings`.
        repeated: how many rows two splits share, or one has twice: `of`, `also_in`, `rows`.
        against: what `hold_against` gives; None where it was not asked for.
    """

    splits: list[dict[str, Any]]
    repeated: list[dict[str, Any]]
    against: dict[str, Any] | None

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=2, ensure_ascii=False)

    def render(self) -> RenderableType:
        """All of it as tables for a terminal."""
        return description_tables(self.splits, self.repeated, self.against)


def describe_data(
    what: str,
    overrides: Sequence[str] = (),
    *,
    text: str | None = None,
    label: str | None = None,
    against: str | None = None,
    reference: str | None = None,
    sample: int = 1000,
) -> DataDescription:
    """Look at the rows of a config or of a source; nothing is trained.

    Args:
        what: a config's YAML file, or a source string.
        overrides: keys of the config to set.
        text, label: the columns that hold them; None for the config's, or as they are often called.
        against: a checkpoint to hold the texts to be trained on against.
        reference: a source of other texts, which the checkpoint is known to suit.
        sample: the most texts that are held against it.

    Raises:
        UserError: the data is not there, or has not what is asked of it.
    """
    sources, reading = _opened(what, overrides, text, label)
    splits = [profile(source, reading) | {"split": name} for name, source in sources.items()]
    digests = {
        name: row_digests(source, reading.texts or source.columns)
        for name, source in sources.items()
    }
    for split in splits:
        split["warnings"] = _warnings(split, reading, digests, sources)
    if against is None:
        if reference is not None:
            raise UserError(
                "--reference needs --against, whose features it is compared with.", "Add --against."
            )
        return DataDescription(splits, _repeated(digests), None)
    first = next(iter(sources.values()))
    against_checkpoint = _hold(first, reading, against, reference, sample)
    return DataDescription(splits, _repeated(digests), against_checkpoint)


def _opened(
    what: str, overrides: Sequence[str], text: str | None, label: str | None
) -> tuple[dict[str, Source], TextColumns]:
    """The splits, and how they are read."""
    if Path(what).suffix not in CONFIGS:
        if overrides:
            raise UserError(f"'{what}' is a source; KEY=VALUE is only for a config file.")
        source = open_source(what)
        named = [name for name in (text, label) if name]
        check_columns(source, named)
        source = source.with_fields(named)
        return {"rows": source}, guess_columns(source, text, label)
    config = load_config(what, overrides)
    task = make_task(config)
    data, seed = config.data, config.run.seed.data
    sources = open_sources(task, data.specs, data.where, seed, data.image_folder)
    reading = TextColumns(
        (text,) if text else task.text_columns,
        label or task.label_column,
        None if text else _render_of(task, next(iter(sources.values()))),
        None if task.problem_type is None else task.problem_type == Number.problem,
    )
    named = [name for name in (text, label) if name]
    for source in sources.values():
        check_columns(source, named)
    return {name: source.with_fields(named) for name, source in sources.items()}, reading


def _render_of(task: Task, source: Source) -> Callable[[Row], str] | None:
    """Return what makes the text that the model reads of a row; None if the task has no such."""
    (first,) = source.rows([0])
    if task.row_texts(first) in ((), tuple(first[name] for name in task.text_columns)):
        return None  # the cells are what is read
    return lambda row: " | ".join(task.row_texts(row))


def _warnings(
    split: Mapping[str, Any],
    reading: TextColumns,
    digests: Mapping[str, np.ndarray],
    sources: Mapping[str, Source],
) -> list[str]:
    """Collect what would spoil a run on this split."""
    warnings, name, labels = [], split["split"], split["labels"]
    if reading.label is not None and len(labels) == 1:
        warnings.append(
            f"all rows have the same class, '{next(iter(labels))}': there is nothing to learn"
        )
    if rare := rare_class(labels):
        warnings.append(
            f"'{rare[0]}' is {share(rare[1])} of the labels: task.class_weights=balanced or "
            "data.balance=true compensates for it"
        )
    if name not in ("train", "rows") and (
        warning := leak(digests[name], digests["train"], sources[name])
    ):
        warnings.append(warning)
    return warnings


def _repeated(digests: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The rows that come twice: in one split, and in two."""
    repeated = []
    names = list(digests)
    for number, name in enumerate(names):
        own = len(digests[name]) - len(np.unique(digests[name]))
        pairs = [(name, name, own)] + [
            (other, name, int(np.isin(digests[other], digests[name]).sum()))
            for other in names[number + 1 :]
        ]
        repeated += [{"of": one, "also_in": two, "rows": many} for one, two, many in pairs if many]
    return repeated


def _hold(
    source: Source, reading: TextColumns, checkpoint: str, reference: str | None, sample: int
) -> dict[str, Any]:
    """The first rows of a source, which are drawn at random, held against a checkpoint."""
    if not reading.texts:
        raise UserError("--against: no text column is known.", "Name it with --text.")
    texts, labels = _sampled(source, reading, sample)
    others = None
    if reference is not None:
        other = open_source(reference)
        columns = reading if all(map(other.has, reading.texts)) else guess_columns(other)
        others, _ = _sampled(other, TextColumns(columns.texts, None), sample)
    return hold_against(checkpoint, texts, labels, others)


def _sampled(
    source: Source, reading: TextColumns, sample: int
) -> tuple[list[str], list[str] | None]:
    """Texts that are not empty, and the class of each where each has one."""
    indices = range(min(sample, len(source)))
    texts = texts_of(source, reading, indices)
    numbers = [number for number, text in enumerate(texts) if text.strip()]
    if not numbers:
        raise UserError(f"{source.spec}: the rows have no text in {', '.join(reading.texts)}.")
    labels = None
    if reading.label is not None:
        values = [row[reading.label] for row in source.rows(indices, [reading.label])]
        if not any(isinstance(value, list | np.ndarray) for value in values):
            labels = [str(values[number]) for number in numbers]
    return [texts[number] for number in numbers], labels
