"""The page of a study: score against rate, drift by depth and member, curves, and the ranking."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxft.numbers as numbers
from jaxft.report.events import read_events
from jaxft.report.page.page import Served, fill
from jaxft.report.page.study_figures import figures, label, setting_keys, text_of
from jaxft.report.page.views import flatten
from jaxft.report.terminal.study import short_key
from jaxft.report.terminal.tables import checkpoint_names
from jaxft.runs.folder import RunFolder
from jaxft.storage import files


def write_study_page(folder: Path) -> Path:
    """Write `index.html` into the folder of a study that is through.

    Args:
        folder: with `study.json`, `parts/`, `metrics.jsonl` and `best.yaml`.

    Returns:
        The file.

    Raises:
        UserError: a file is missing or broken.
    """
    read = RunFolder(folder)
    about = read.read_json("study.json")
    parts = [read.read_json(f"parts/{part['index']}.json") for part in about.get("parts", [])]
    path = folder / "index.html"
    files.write_atomic(path, render_study(folder, about, parts, read_events(folder)))
    return path


def render_study(
    folder: Path,
    about: Mapping[str, Any],
    parts: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
    scripts: Sequence[str] = (),
    served: Served | None = None,
) -> str:
    """Return the page of a study.

    Args:
        folder: its folder, which has `best.yaml` once the study is through.
        about: the content of `study.json`.
        parts: the content of those of `parts/` that there are.
        events: the lines of `metrics.jsonl`.
        scripts: names of scripts in `assets/` that come after the study's own.
        served: by a server that goes on to send what changes; None for a file.
    """
    drawn, best = figures(about, parts, events), folder / "best.yaml"
    return fill(
        "study",
        ("study", *scripts),
        [
            {k: v for k, v in figure.items() if k not in ("lead", "span", "unit")}
            for figure in drawn
        ],
        served,
        shown=drawn,
        best=best.read_text(encoding="utf-8") if best.exists() else "",
        notes=[event for event in events if event["kind"] == "note"],
        **_view(about, parts),
    )


def _view(about: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the template shows beside the figures."""
    config, keys = about["config"], setting_keys(about)
    ranking = [_ranked(entry, keys) for entry in about.get("ranking") or []]
    members = about["members"]
    tiles = [("members", f"{len(members):,}"), ("programs", f"{len(parts) or 1:,}")]
    if parts:
        tiles.append(("trained in", numbers.span(sum(part["seconds"] for part in parts))))
        diverged = sum(len(part["diverged"]) for part in parts)
        tiles += [("diverged", str(diverged))] if diverged else []
    return {
        "name": about["name"],
        "state": about["state"],
        "task": config["task"]["kind"].replace("_", " "),
        "checkpoint": checkpoint_names(config["model"]["checkpoint"]),
        "started": about["started"].replace("T", " ").removesuffix("Z"),
        "command": shlex.join(map(str, about["command"])),
        "headline": _headline(about, ranking, keys),
        "tiles": tiles,
        "keys": [short_key(key) for key in keys],
        "metric": about["metric"],
        "findings": [str(sentence) for sentence in about.get("findings") or []],
        "seeded": any(row["seeds"] > 1 for row in ranking),
        "stopped": any(row["trained"] < 1 for row in ranking),
        "tested": any(row["test"] is not None for row in ranking),
        "ranking": ranking,
        "ranges": [
            {"texts": [text_of(members[measured["member"]], key) for key in keys], **measured}
            for measured in about.get("ranges") or []
        ],
        "facts": list(
            flatten({k: about[k] for k in ("versions", "devices", "host", "system")}).items()
        ),
    }


def _ranked(entry: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    best = entry["best"]
    return {
        "texts": [text_of(entry, key) for key in keys],
        "seeds": len(entry["members"]),
        "best": best["mean"],
        "deviation": best["deviation"],
        "low": best["low"],
        "high": best["high"],
        "last": entry["last"]["mean"],
        "test": entry.get("test", {}).get("mean"),
        "step": entry["step"],
        "trained": entry.get("trained", 1),
        "diverged": entry["diverged"],
    }


def _headline(
    about: Mapping[str, Any], ranking: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> dict[str, Any] | None:
    """The best setting's score."""
    if not ranking or ranking[0]["best"] is None:
        return None
    first = ranking[0]
    margin = None if first["low"] is None else (first["high"] - first["low"]) / 2
    where = label(about["ranking"][0]["values"], keys)
    return {
        "what": f"best {about['metric']}",
        "value": first["best"],
        "margin": margin,
        "where": where,
    }
