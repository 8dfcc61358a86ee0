"""The page template's values for each run, computed from the content of its folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.page.binary import thresholds
from jaxft.report.page.classes import split_view
from jaxft.report.page.figures import group_colour, metrics_of
from jaxft.report.page.overfitting import overfitting
from jaxft.report.page.predictions.boxes import boxed
from jaxft.report.page.predictions.images import drawn, sheets
from jaxft.report.page.predictions.lines import (
    BLANKS,
    BOXED,
    CLASSES,
    ENTITIES,
    MASKS,
    PAIRS,
    RETRIEVAL,
    SAMPLES,
    TEXTS,
)
from jaxft.report.page.predictions.masked_words import filled
from jaxft.report.page.predictions.masks import masked
from jaxft.report.page.predictions.pairs import paired
from jaxft.report.page.predictions.search import has_images, searched
from jaxft.report.page.predictions.texts import written
from jaxft.report.page.predictions.tokens import tagged
from jaxft.report.page.run import BEFORE, Run, config_text
from jaxft.report.terminal.tables import checkpoint_names, part_of
from jaxft.runs.history import group_pieces, pieces_text


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The config keys on which the runs differ, dotted, with each run's value as text."""
    flat = [flatten(config) for config in configs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = [(key, [config.get(key, "") for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def view(run: Run, index: int) -> dict[str, Any]:
    """A run as the template shows it."""
    return {
        **changing_view(run),
        "index": index,
        "name": run.name,
        "command": _command(run.about),
        "checkpoint": checkpoint_names((run.config.get("model") or {}).get("checkpoint", "")),
        "task": run.task.replace("_", " "),
        "started": str(run.about.get("started", "")).replace("T", " ").removesuffix("Z"),
        "scores": _scores(run),
        "depths": _depths(run),
        "groups": _groups(run),
        "peaks": _peaks(run),
        "earlier_rates": bool((run.table or {}).get("earlier")),
        "rows": sorted(run.table["rows"], key=lambda row: row["depth"]) if run.table else [],
        "colours": {entry["name"]: group_colour(run, entry["name"]) for entry in _groups(run)},
        **_predictions(run),
        "thresholds": thresholds(run),
        "warnings": _warnings(run),
        "config": config_text(run) if run.config else "",
        "facts": list(flatten(run.about).items()),
        "problems": run.problems,
    }


def changing_view(run: Run) -> dict[str, Any]:
    """The part of `view` that changes with each event of a run."""
    return {
        "state": str(run.about.get("state", "state unknown")),
        "headline": _headline(run),
        "tiles": _tiles(run),
        "notes": [
            *(note for note in run.of_kind("note") if isinstance(note.get("text"), str)),
            *overfitting(run.events),
        ],
    }


def _predictions(run: Run) -> dict[str, Any]:
    """Return each example's predictions, under the name of the part of the page that shows them."""
    before, classes = run.predictions.get(BEFORE, []), run.view in CLASSES
    splits = {split: lines for split, lines in run.predictions.items() if split != BEFORE}
    # What was said before the first step is of the eval rows, so they come first.
    compared = [
        (split, splits[split], before if split == "eval" else [])
        for split in ("eval", "test")
        if split in splits
    ]
    answered = [run.answers["after"]] if "after" in run.answers else []
    return {
        "splits": [split_view(*one) for one in splits.items() if classes],
        "boxes": [boxed(*one) for one in splits.items() if run.view == BOXED],
        "masked": [masked(*one) for one in splits.items() if run.view == MASKS],
        "tagged": [tagged(*one) for one in splits.items() if run.view == ENTITIES],
        "filled": [filled(*one) for one in compared if run.view == BLANKS],
        "paired": [paired(*one) for one in compared if run.view == PAIRS],
        "searched": [
            searched(*one) for one in compared if run.view == RETRIEVAL and has_images(one[1])
        ],
        "sheets": sheets(run.path) if run.view == SAMPLES else [],
        "drawn": [drawn(*one) for one in splits.items() if run.view == SAMPLES],
        "written": [
            *(written(*one) for one in compared if run.view == TEXTS),
            *(written("eval", answer, run.answers.get(BEFORE, [])) for answer in answered),
        ],
    }


def _headline(run: Run) -> dict[str, Any] | None:
    """The primary metric: on `test` where it was scored, else the last evaluation's."""
    names = metrics_of(run)
    if run.result is not None:
        scores = _numbers(run.result["metrics"])
        name = next((name for name in [*names, *scores] if name in scores and name != "loss"), None)
        if name is not None:
            value, examples = scores[name], run.result["examples"]
            return {
                "name": name,
                "where": run.result["split"],
                "value": value,
                "margin": _margin(value, examples) if name == "accuracy" else None,
                "rivals": _rivals(value, _numbers(run.result.get("baselines") or {})),
            }
    last = run.of_kind("eval")[-1:]
    if last and names and names[0] in _numbers(last[0]):
        value, where = float(last[0][names[0]]), str(last[0].get("split", "eval"))
        return {"name": names[0], "where": where, "value": value, "margin": None, "rivals": []}
    return None


def _margin(accuracy: float, examples: int) -> float:
    """Half of the 95% interval of a share that was counted on `examples` draws."""
    return 1.96 * math.sqrt(max(accuracy * (1 - accuracy), 0) / max(examples, 1))


def _rivals(value: float, baselines: Mapping[str, float]) -> list[dict[str, Any]]:
    """This run and its baselines as bars; none where there is nothing to compare with."""
    if not baselines:
        return []
    most = max(1.0, value, *baselines.values())
    named = {"this run": value, **baselines}
    return [
        {"name": name, "value": score, "width": max(score, 0) / most, "ours": name == "this run"}
        for name, score in named.items()
    ]


def _tiles(run: Run) -> list[tuple[str, str]]:
    """A few facts, each as (what, how much)."""
    tiles = []
    train = run.of_kind("train")
    if train:
        tiles.append(("steps", f"{train[-1]['step']:,}"))
        epochs = _numbers(train[-1]).get("epoch")
        tiles += [("epochs", f"{epochs:.2f}".rstrip("0").rstrip("."))] if epochs else []
    # A resumed run's clock holds the pause too, so its time says nothing.
    clock = [time for event in run.events if (time := _numbers(event).get("time"))]
    began = _seconds(run.about.get("started"))
    if clock and began is not None and clock[-1] >= began and not run.about.get("resumed"):
        tiles.append(("from start to last event", numbers.span(clock[-1] - began)))
    examples, tokens = (_usual(train, f"{name}_per_second") for name in ("examples", "tokens"))
    tiles += [("examples per second", numbers.count(examples))] if examples else []
    tiles += [("tokens per second", numbers.count(tokens))] if tokens > examples else []
    flops, used = _usual(train, "flops_per_second"), _usual(train, "mfu")
    tiles += [("model FLOPs per second", numbers.count(flops, "FLOP"))] if flops else []
    tiles += [("model FLOPs utilization (MFU)", numbers.share(used))] if used else []
    groups = _groups(run)
    if groups:
        total = sum(group["parameters"] for group in groups)
        trains = sum(group["parameters"] for group in groups if group["trainable"])
        tiles.append(("parameters", numbers.count(total)))
        tiles.append(("trainable", numbers.share(trains / max(total, 1))))
    step = _numbers((run.table or {}).get("flops") or {})
    if step.get("step") and step.get("full"):
        tiles.append(("FLOPs saved by freezing", numbers.share(1 - step["step"] / step["full"])))
    return tiles


def _seconds(started: Any) -> float | None:
    """The seconds since 1970 of a time like `2026-01-31T12:00:00Z`; None of anything else."""
    try:
        return datetime.fromisoformat(str(started)).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _usual(train: Sequence[Mapping[str, Any]], name: str) -> float:
    """The median of a value of training events; 0 where none has it."""
    values = sorted(value for event in train if (value := _numbers(event).get(name)))
    return values[len(values) // 2] if values else 0.0


def _scores(run: Run) -> dict[str, float]:
    return _numbers(run.result["metrics"]) if run.result else {}


def _groups(run: Run) -> list[Mapping[str, Any]]:
    return run.table["groups"] if run.table else []


def _warnings(run: Run) -> list[str]:
    """The warnings of data and result, each after the name of its split, and of the optimizer."""
    data = [one for one in run.about.get("data") or () if isinstance(one, Mapping)]
    warned = [(one.get("split"), line) for one in data for line in one.get("warnings") or ()]
    result = run.result or {}
    warned += [(result.get("split"), line) for line in result.get("warnings") or ()]
    lines = [f"{split}: {line}." for split, line in warned]
    return lines + [f"{line}." for line in (run.table or {}).get("warnings") or ()]


def _peaks(run: Run) -> dict[str, str]:
    """Each group's peak rate; several where a resume changed it: `5e-5 to step 38, 1e-3 after`."""
    train = run.of_kind("train")
    last = train[-1]["step"] if train else 0

    def peak(group: Mapping[str, Any]) -> str:
        return numbers.rate(group["peak_rate"])

    return {
        group["name"]: pieces_text(group_pieces(run.table or {}, group, peak, last))
        for group in _groups(run)
    }


def _depths(run: Run) -> list[dict[str, Any]]:
    """The layer table by depth and group, from the output down to the input."""
    rows = run.table["rows"] if run.table else []
    most = max((row["peak_rate"] for row in rows), default=0) or 1
    lines = []
    for depth, group in sorted({(row["depth"], row["group"]) for row in rows}, reverse=True):
        here = [row for row in rows if (row["depth"], row["group"]) == (depth, group)]
        peak = max(row["peak_rate"] for row in here)
        lines.append(
            {
                "depth": depth,
                "parts": ", ".join(dict.fromkeys(part_of(row["name"]) for row in here)),
                "group": group,
                "parameters": sum(row["parameters"] for row in here),
                "trains": any(row["trainable"] for row in here),
                "peak": peak,
                "width": peak / most,
            }
        )
    return lines


def _command(about: Mapping[str, Any]) -> str:
    command = about.get("command", "")
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)


def _numbers(values: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping; none if a damaged file has something else there."""
    items = values.items() if isinstance(values, Mapping) else ()
    return {name: float(value) for name, value in items if numbers.is_finite(value)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b` -> text; mappings in a list by their number, other lists whole."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{name}"] = text
    return flat
