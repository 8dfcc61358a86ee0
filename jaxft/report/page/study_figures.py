"""The figures of a study's page as plain data, which `assets/study.js` draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.page.figures import DASHES, smooth
from jaxft.report.terminal.study import short_key, value_text

RATE = "optimizer.lr"
MOST_IN_A_LEGEND = 10
Figure = dict[str, Any]


def figures(
    about: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], events: Sequence[Mapping]
) -> list[Figure]:
    """Every figure that a study has data for.

    Args:
        about: the content of `study.json`.
        parts: the content of each of `parts/`.
        events: the lines of `metrics.jsonl`.
    """
    drawn: list[Figure] = []
    if about.get("ranking"):
        drawn += [_scores(about, "best"), _scores(about, "last")]
    if parts:
        drawn.append(_drift(about, parts))
    going = about.get("state") == "running" and any(e["kind"] == "train" for e in events)
    if parts or going:
        drawn.append(_losses(about, events))
    if about.get("ranges"):
        drawn.append(_ranges(about))
    return drawn


def label(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return what distinguishes a member or setting: `layer_decay.rate 0.8`, without long paths."""
    return ", ".join(f"{short_key(key)} {value_text(values[key])}" for key in keys if key in values)


def _axis_of(about: Mapping[str, Any]) -> str:
    """The varied key that the scores are drawn against: the rate, or the first of numbers."""
    keys = setting_keys(about)
    numeric = [key for key in keys if all(map(_is_number, about["vary"][key]))]
    return RATE if RATE in keys else next(iter(numeric or keys), "")


def setting_keys(about: Mapping[str, Any]) -> list[str]:
    """The varied keys that are no seeds."""
    return [key for key in about["vary"] if not key.startswith("run.seed")]


def _scores(about: Mapping[str, Any], which: str) -> Figure:
    """The best or last score against the rate: one line a setting of the other keys."""
    axis = _axis_of(about)
    others = [key for key in setting_keys(about) if key != axis]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for entry in sorted(about["ranking"], key=lambda entry: entry["members"][0]):
        lines.setdefault(label(entry["values"], others), []).append(entry)
    values = about["vary"].get(axis, [])
    numeric = bool(values) and all(map(_is_number, values))
    wide = numeric and min(values) > 0 and max(values) >= 5 * min(values)
    seeded = any(len(entry["members"]) > 1 for entry in about["ranking"])
    metric = about["metric"].replace("_", " ")
    return {
        "id": which,
        "kind": "lines",
        "title": f"Best {metric}" if which == "best" else f"{metric.capitalize()} at the end",
        "unit": "mean over seeds and its 95% interval" if seeded else "on the eval rows",
        "lead": "",
        "axis": axis or "setting",
        "scale": ("log" if wide else "linear") if numeric else "category",
        "ticks": [[value, value_text(value)] for value in values] if numeric else [],
        "format": ".4f",
        "legend": len(lines) > 1,
        "series": [
            _score_line(name or metric, index, entries, which, axis)
            for index, (name, entries) in enumerate(lines.items())
        ],
        "span": 6,
    }


def _score_line(
    name: str, colour: int, entries: Sequence[Mapping[str, Any]], which: str, axis: str
) -> dict[str, Any]:
    """The settings of one line that did not diverge, with their intervals where there are some."""
    finished = [entry for entry in entries if entry[which]["mean"] is not None]
    finished = [entry for entry in finished if not entry["diverged"]]
    if all(_is_number(entry["values"].get(axis)) for entry in finished):
        finished.sort(key=lambda entry: entry["values"][axis])
        positions = [entry["values"][axis] for entry in finished]
    else:
        positions = [text_of(entry, axis) for entry in finished]
    scores = [entry[which] for entry in finished]
    line = {**_line(name, colour, "points"), "x": positions, "y": [one["mean"] for one in scores]}
    if scores and all(one["low"] is not None for one in scores):
        line["above"] = [one["high"] - one["mean"] for one in scores]
        line["below"] = [one["mean"] - one["low"] for one in scores]
    return line


def text_of(entry: Mapping[str, Any], key: str) -> str:
    return value_text(entry["values"][key]) if key in entry["values"] else ""


def _drift(about: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Figure:
    """Return how far each depth of each member is from where it started."""
    keys = setting_keys(about)
    by_member: dict[int, dict[str, float]] = {}
    for part in parts:
        for depth, values in part["drift"].items():
            for member, value in zip(part["members"], values, strict=True):
                by_member.setdefault(member, {})[depth] = value
    settings: dict[str, list[int]] = {}
    for one in about["members"]:
        if one["index"] in by_member:  # while a study goes on, others are still to come
            settings.setdefault(label(one["values"], keys), []).append(one["index"])
    depths = sorted({int(depth) for one in by_member.values() for depth in one})
    seeded = len(settings) < len(by_member)
    return {
        "id": "drift",
        "kind": "heat",
        "title": "Drift by depth",
        "unit": "‖w - w₀‖ / ‖w₀‖ at the end" + (", mean over seeds" if seeded else ""),
        "lead": "Depth 0 is the embeddings, the highest depth is the head.",
        "axis": "",
        "x": list(settings),
        "y": [str(depth) for depth in depths],
        "z": [
            [_mean([by_member[m].get(str(depth), 0.0) for m in own]) for own in settings.values()]
            for depth in depths
        ],
        "span": 12,
    }


def _losses(about: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Figure:
    """The training loss of each member; colours are those of the score's lines."""
    names, axis = _names(about), _axis_of(about)
    others = [key for key in setting_keys(about) if key != axis]
    lines = list(dict.fromkeys(label(one["values"], others) for one in about["members"]))
    shades = [value_text(value) for value in about["vary"].get(axis, [])]
    series = []
    for one in about["members"]:
        own = [e for e in events if e["kind"] == "train" and e.get("member") == one["index"]]
        own = [event for event in own if _is_number(event.get("loss"))]
        line = _line(names[one["index"]], lines.index(label(one["values"], others)), "line")
        shade = shades.index(value_text(one["values"][axis])) if axis else 0
        line["dash"] = DASHES[shade % len(DASHES)] if len(lines) > 1 else "solid"
        if len(lines) == 1:
            line["colour"] = shade
        line["x"] = [event["step"] for event in own]
        losses = [event["loss"] for event in own]
        line["y"] = smooth(losses, len(losses) / 12) if len(losses) > 20 else losses
        series.append(line)
    return {
        "id": "losses",
        "kind": "lines",
        "title": "Training loss",
        "unit": "smoothed" if any(len(line["x"]) > 20 for line in series) else "",
        "lead": "",
        "axis": "step",
        "scale": "linear",
        "format": ".4f",
        "legend": len(series) <= MOST_IN_A_LEGEND,
        "series": series,
        "span": 12,
    }


def _ranges(about: Mapping[str, Any]) -> Figure:
    """The loss against the rising rate, and the suggested range as a band."""
    names = _names(about)
    series, bands = [], []
    for index, test in enumerate(about["ranges"]):
        name = names[test["member"]] or "loss"
        count = len(test["smoothed"])
        faint, even = _line(name, index, "faint"), _line(name, index, "line")
        faint["x"], faint["y"] = test["rates"][:count], test["losses"][:count]
        even["x"], even["y"] = test["rates"][:count], test["smoothed"]
        series += [faint, even]
        if test["low"] is not None:
            bands.append([test["low"], test["high"]])
    return {
        "id": "range",
        "kind": "lines",
        "title": "Loss as the learning rate rises",
        "unit": "thin: each step; thick: smoothed; band: the suggested range",
        "lead": "",
        "axis": RATE,
        "scale": "log",
        "format": ".4f",
        "legend": len(about["ranges"]) > 1,
        "series": series,
        "bands": bands,
        "span": 12,
    }


def _names(about: Mapping[str, Any]) -> dict[int, str]:
    keys = list(about["vary"])
    return {one["index"]: label(one["values"], keys) for one in about["members"]}


def _line(name: str, colour: int, style: str) -> dict[str, Any]:
    return {"name": name, "colour": colour, "style": style, "dash": "solid"}


def _is_number(value: Any) -> bool:
    return numbers.is_finite(value)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is none, or not finite."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if len(finite) == len(values) else None
