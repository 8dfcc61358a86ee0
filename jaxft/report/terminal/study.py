"""The terminal output of `jaxft study` beside its bar: what will run, and the results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jaxft.numbers import rate, score, size


def parts_table(parts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Which members run together, and what they need of memory, before anything is compiled.

    Args:
        parts: mappings with `bucket`, `members`, `differs` (bucket -> key=value), `steps`,
            `bytes` and `state` (bytes a member).
    """
    table = Table("program", "members", "members", box=box.SIMPLE_HEAD)
    for name in ("steps", "memory", "of it per member"):
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(
            str(part["bucket"] + 1),
            str(len(part["members"])),
            Text(part["differs"] or "rates and seeds only"),
            f"{part['steps']:,}",
            size(part["bytes"]),
            size(part["state"]),
        )
    return table


def ranking_table(ranking: Sequence[Mapping[str, Any]], metric: str) -> RenderableType:
    """The settings of a study, the best first, with the last and the best score of each.

    Args:
        ranking: as `study_rank.rank` gives it.
        metric: what is ranked by.
    """
    keys = list(dict.fromkeys(key for entry in ranking for key in entry["values"]))
    caption = f"{metric} on the eval rows"
    table = Table("", *map(short_key, keys), box=box.SIMPLE_HEAD, caption=caption)
    repeated = any(len(entry["members"]) > 1 for entry in ranking)
    columns = ["best", "at step", "last"]
    if repeated:
        columns = ["seeds", "best", "deviation", "95% interval", "last"]
    tested = any("test" in entry for entry in ranking)
    stopped = any(entry.get("trained", 1) < 1 for entry in ranking)
    for name in [*columns, *["trained"] * stopped, *["test at the end"] * tested]:
        table.add_column(name, justify="right", no_wrap=True)
    for rank, entry in enumerate(ranking, 1):
        best, last = entry["best"], entry["last"]
        cells = [value_text(entry["values"][key]) for key in keys]
        if repeated:
            cells += [str(len(entry["members"])), _score(best["mean"]), _score(best["deviation"])]
            known = best["low"] is not None
            cells.append(f"{score(best['low'])} to {score(best['high'])}" if known else "")
        else:
            cells += [_score(best["mean"]), f"{entry['step'] or 0:,}"]
        cells.append("diverged" if entry["diverged"] else _score(last["mean"]))
        cells += [f"{entry['trained']:.0%}"] if stopped else []
        cells += [_score(entry["test"]["mean"])] if tested else []
        table.add_row(str(rank), *map(Text, cells), style="bold green" if rank == 1 else "")
    return table


def short_key(key: str) -> str:
    """A config key without what all people know of it."""
    known = {"layer_decay.rate": "decay", "optimizer.lr": "lr"}
    return known.get(key, key.removeprefix("optimizer.").removeprefix("run."))


def value_text(value: Any) -> str:
    """A varied value as a person writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return rate(value) if 0 < abs(value) < 1e-2 else f"{value:g}"
    return json.dumps(value)


def _score(value: float | None) -> str:
    return "" if value is None else score(value)


def ranges_table(
    ranges: Sequence[Mapping[str, Any]], members: Sequence[Mapping[str, Any]]
) -> RenderableType:
    """The range of rates that each member's curve suggests.

    Args:
        ranges: as `study_range.range_of` gives them, with `member`.
        members: mappings with `values`, by their index.
    """
    keys = list(members[0]["values"])
    table = Table(
        *map(short_key, keys), "optimizer.lr from", "to", "lowest loss", box=box.SIMPLE_HEAD
    )
    for test in ranges:
        cells = [value_text(members[test["member"]]["values"][key]) for key in keys]
        known = test["low"] is not None
        cells += [rate(test["low"]), rate(test["high"])] if known else ["the loss never fell", ""]
        cells.append(score(min(test["smoothed"])) if test["smoothed"] else "")
        table.add_row(*map(Text, cells))
    return table
