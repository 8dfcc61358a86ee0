"""Reading a run folder for the page, with a sentence for each file that is missing or broken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

import jaxft.numbers as numbers
from jaxft.bounds import MOST_PREDICTIONS_BYTES
from jaxft.errors import UserError
from jaxft.report.events import thinned_events
from jaxft.report.page.predictions.lines import ANSWER, LINES, NUMBER, Keys, view_of
from jaxft.runs.folder import RunFolder, open_run
from jaxft.storage.json_files import parse_json

SECTIONS: Keys = dict.fromkeys(("model", "task"), (dict, type(None)))  # of a config, as read here
SPLITS = ("test", "eval")  # the order in which their predictions are shown
BEFORE = "before"  # what was said of the eval rows before the first step, where that was asked for
ROW: Keys = {
    "name": (str,),
    "shape": (list,),
    "group": (str,),
    "depth": (int,),
    "trainable": (bool,),
    "multiplier": NUMBER,
    "peak_rate": NUMBER,
    "weight_decay": NUMBER,
    "parameters": (int,),
}
GROUP: Keys = {
    "name": (str,),
    "leaves": (int,),
    "parameters": (int,),
    "trainable": (bool,),
    "peak_rate": NUMBER,
    "schedule": (str, type(None)),
    "weight_decay": (*NUMBER, type(None)),
    "optimizer_bytes": NUMBER,
}
POINTS: Keys = {
    **dict.fromkeys(("x", "y", "labels", "explained"), (list,)),
    **dict.fromkeys(("alike", "guessing"), NUMBER),
}
RESULT: Keys = {"split": (str,), "step": (int,), "metrics": (dict,), "examples": (int,)}


@dataclass(frozen=True)
class Run:
    """A run folder, read. What could not be read is None or empty, and `problems` says why.

    Attributes:
        name: what the page calls it.
        path: the folder.
        about: the content of `run.json`.
        config: the content of `config.yaml`.
        events: the lines of `metrics.jsonl`.
        table: the content of `table.json`.
        rates: the content of `rates.json`.
        result: the content of `result.json`.
        predictions: split -> the lines of its predictions file.
        embeddings: `before` and `after` -> the content of `embeddings-before.json` and its like.
        answers: the same of `answers-before.json` and its like.
        problems: sentences for the person who reads the page.
    """

    name: str
    path: Path
    about: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    table: Mapping[str, Any] | None = None
    rates: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    predictions: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    embeddings: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    answers: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """The kind of its task; empty where the config could not be read."""
        return str((self.config.get("task") or {}).get("kind", ""))

    @property
    def view(self) -> str | None:
        """The part of the page that shows its predictions; None for none."""
        return view_of(self.about, self.config.get("task") or {})

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind: `train`, `eval` or `note`."""
        return [event for event in self.events if event["kind"] == kind]


def read_run(path: Path, name: str, events: list[dict[str, Any]] | None = None) -> Run:
    """Read a run folder for the page.

    Args:
        path: the folder.
        name: what the page shall call it.
        events: of its `metrics.jsonl`, where they have been read; None reads them.

    Raises:
        UserError: the folder is not a run.
    """
    folder = open_run(path)
    problems: list[str] = []

    def attempt(read: Callable[[], Any], left_out: str) -> Any:
        try:
            return read()
        except UserError as error:
            problems.append(f"{error.message} The page leaves out {left_out}.")
            return None

    about = attempt(lambda: _about(folder), "versions and devices") or {}
    config = attempt(lambda: _config(folder), "the config") or {}
    view = view_of(about, config.get("task") or {})
    splits = [] if view is None else [*SPLITS]
    if splits and (folder.path / f"predictions-{BEFORE}.jsonl").exists():
        splits.append(BEFORE)
    predictions = {}
    for split in splits:
        lines = attempt(
            partial(_predictions, folder, split, *LINES[str(view)]), f"the predictions on {split}"
        )
        if lines:
            predictions[split] = lines
    return Run(
        name=name,
        path=path,
        about=about,
        config=config,
        events=(attempt(lambda: _events(folder), "the curves") or []) if events is None else events,
        table=attempt(lambda: _table(folder), "the layer table"),
        rates=attempt(lambda: _rates(folder), "the rates"),
        result=attempt(lambda: _result(folder), "the result"),
        predictions=predictions,
        embeddings=attempt(lambda: _embeddings(folder), "the embeddings of the eval rows") or {},
        answers=attempt(lambda: _answers(folder), "the answers") or {},
        problems=problems,
    )


def config_text(run: Run) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=100)


def _about(folder: RunFolder) -> Any:
    about = folder.read_json("run.json")
    _check([about], {}, folder, "run.json")
    return about


def _config(folder: RunFolder) -> Any:
    config = folder.config()
    _check([config], SECTIONS, folder, "config.yaml")
    return config


def _events(folder: RunFolder) -> list[dict[str, Any]]:
    events = thinned_events(folder.path)
    if not events:
        raise UserError(f"{folder.path} has no metrics.jsonl, or an empty one.")
    return events


def _table(folder: RunFolder) -> Any:
    table = folder.read_json("table.json")
    _check([table], {"groups": (list,), "rows": (list,)}, folder, "table.json")
    _check(table["groups"], GROUP, folder, "table.json")
    _check(table["rows"], ROW, folder, "table.json")
    return table


def _rates(folder: RunFolder) -> Any:
    rates = folder.read_json("rates.json")
    keys: Keys = {"groups": (list,), "steps": (list,), "rates": (list,)}
    _check([rates], keys, folder, "rates.json")
    steps = rates["steps"]
    proper = all(map(numbers.is_finite, steps)) and _is_grid(rates["rates"], steps, rates["groups"])
    if "by_depth" in rates:  # runs of before there was a fan have none
        proper = proper and _is_grid(rates["by_depth"], steps, rates.get("depths"))
    if not proper:
        raise UserError(f"{folder.path}/rates.json does not have one rate for each group and step.")
    return rates


def _result(folder: RunFolder) -> Any:
    result = folder.read_json("result.json")
    _check([result], RESULT, folder, "result.json")
    return result


def _embeddings(folder: RunFolder) -> dict[str, Any]:
    """Read the positions of the eval rows; a run has them where `report.before` asks for it."""
    versions = {}
    for when in (BEFORE, "after"):
        name = f"embeddings-{when}.json"
        if not (folder.path / name).exists():
            continue
        read = folder.read_json(name)
        _check([read], POINTS, folder, name)
        if not _is_grid([read["x"], read["y"]], ["x", "y"], read["labels"]):
            raise UserError(f"{folder.path}/{name} does not have one point for each label.")
        if not all(isinstance(label, str) for label in read["labels"]) or not all(
            map(numbers.is_finite, read["explained"])
        ):
            raise UserError(f"{folder.path}/{name} does not have the format that jaxft writes.")
        versions[when] = read
    return versions


def _answers(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """Read what was answered before the first step and after the run."""
    versions = {}
    for when in (BEFORE, "after"):
        name = f"answers-{when}.json"
        if (folder.path / name).exists():
            versions[when] = folder.read_json(name)
            if not isinstance(versions[when], list):
                raise UserError(f"{folder.path}/{name} does not have the format that jaxft writes.")
            _check(versions[when], ANSWER, folder, name)
    return versions


def _predictions(
    folder: RunFolder, split: str, keys: Keys, inside: Mapping[str, Keys]
) -> list[dict[str, Any]]:
    name = f"predictions-{split}.jsonl"
    path = folder.path / name
    lines = []
    content = folder.read(name, MOST_PREDICTIONS_BYTES)
    for number, line in enumerate(content.splitlines(), 1):
        lines.append(parse_json(line, f"{path}, line {number}"))
    _check(lines, keys, folder, name)
    if not all(map(_names_classes, lines)):
        raise UserError(f"{folder.path}/{name} has classes or probabilities of another type.")
    if not all(_is_span(line["blank"]) for line in lines if "blank" in keys):
        raise UserError(f"{folder.path}/{name} has a 'blank' that is not a start and an end.")
    for key, own in inside.items():
        _check([one for line in lines for one in line.get(key) or ()], own, folder, name)
    return lines


def _is_span(value: Sequence[Any]) -> bool:
    """Return whether a list is the start and the end of a span of characters."""
    return len(value) == 2 and all(type(one) is int and one >= 0 for one in value)


def _names_classes(line: Mapping[str, Any]) -> bool:
    """Return whether the classes in a line are texts, and their probabilities numbers."""
    labels = [line.get(key) for key in ("label", "predicted")]
    texts = [text for label in labels if isinstance(label, list) for text in label]
    chances = line.get("probabilities")
    values = chances.values() if isinstance(chances, dict) else ()
    return all(isinstance(text, str) for text in texts) and all(map(numbers.is_finite, values))


def _check(items: Iterable[Any], keys: Keys, folder: RunFolder, name: str) -> None:
    """Every item is a mapping that has `keys`, each of one of its types; numbers are finite."""
    for item in items:
        if not isinstance(item, dict):
            raise UserError(f"{folder.path}/{name} does not have the format that jaxft writes.")
        for key, types in keys.items():
            value = item.get(key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not isinstance(value, types) or (number and not numbers.is_finite(value)):
                raise UserError(f"{folder.path}/{name} has an entry without a proper '{key}'.")


def _is_grid(rows: Any, lines: list, columns: Any) -> bool:
    """Return whether there is a finite number for each line and column."""
    if not isinstance(rows, list) or not isinstance(columns, list) or len(rows) != len(lines):
        return False
    return all(
        isinstance(row, list) and len(row) == len(columns) and all(map(numbers.is_finite, row))
        for row in rows
    )
