"""The terminal output of `jaxft data describe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxft.numbers import share

BAR = 30  # columns of the longest bar
MOST_LABELS = 12


def description_tables(
    splits: Sequence[Mapping[str, Any]],
    repeated: Sequence[Mapping[str, Any]],
    against: Mapping[str, Any] | None,
) -> RenderableType:
    """Tables of each split, of what comes twice, and of what a checkpoint makes of the texts.

    Args:
        splits, repeated, against: see `jaxft.analysis.describe_data.DataDescription`.
    """
    shown: list[RenderableType] = []
    for split in splits:
        shown += _split(split)
    if repeated:
        table = _table("duplicate rows", ("rows", "of", "also in"))
        for one in repeated:
            again = "the same" if one["of"] == one["also_in"] else one["also_in"]
            table.add_row(f"{one['rows']:,}", one["of"], again)
        shown.append(table)
    if against is not None:
        shown += _against(against)
    return Group(*shown)


def _split(split: Mapping[str, Any]) -> list[RenderableType]:
    title = f"{split['split']}: {split['rows']:,} rows of {split['source']}"
    shown: list[RenderableType] = [Text(title, "bold"), _columns(split)]
    labels = split["labels"]
    if labels:
        bars = [(name, many) for name, many in labels.items()][:MOST_LABELS]
        shown.append(_bars("labels", bars, split["rows"]))
        if split["distinct"] > MOST_LABELS:
            shown.append(Text(f"and {split['distinct'] - MOST_LABELS:,} more labels"))
    if numbers := split["numbers"]:
        mean, deviation, least, greatest = (
            f"{numbers[name]:,.6g}" for name in ("mean", "deviation", "least", "greatest")
        )
        about = f"label: mean {mean}, standard deviation {deviation}, from {least} to {greatest}"
        shown.append(Text(about, "bold"))
    if words := split["words"]:
        bars = [(_span(one), one["rows"]) for one in words["histogram"]]
        about = f"words: mean {words['mean']:.1f}, median {words['median']:g}, longest"
        shown.append(_bars(f"{about} {words['longest']:,}", bars, split["rows"]))
    shown.append(_examples(split["examples"]))
    shown += [Text(f"{split['split']}: {line}.", "bold yellow") for line in split["warnings"]]
    return [*shown, Text("")]


def _columns(split: Mapping[str, Any]) -> Table:
    table = _table(None, ("column", "type", "empty"))
    for column in split["columns"]:
        empty = f"{column['empty']:,}" if column["empty"] else ""
        table.add_row(Text(column["name"]), column["type"], empty)
    return table


def _examples(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("examples", ("", ""))
    table.show_header = False
    for number, row in enumerate(rows):
        if number:
            table.add_section()
        for name, value in row.items():
            table.add_row(Text(name, "dim"), Text(str(value)))
    return table


def _bars(title: str, counts: Sequence[tuple[str, int]], total: int) -> Table:
    """Return counts as bars, with their shares of all rows."""
    table = _table(title, ("", "rows", "", ""))
    table.show_header = False
    most = max(many for _, many in counts) or 1
    for name, many in counts:
        bar = "━" * max(round(BAR * many / most), 1) if many else ""
        table.add_row(
            Text(str(name)), f"{many:,}", share(many / max(total, 1)), Text(bar, "magenta")
        )
    return table


def _span(one: Mapping[str, Any]) -> str:
    return f"{one['from']} and more" if one["to"] is None else f"{one['from']}-{one['to']}"


def _against(fit: Mapping[str, Any]) -> list[RenderableType]:
    """Return what a checkpoint makes of the texts, and the advice."""
    tokens = fit["tokens"]
    table = _table(f"{fit['texts']:,} texts against {fit['checkpoint']}", ("", "", ""))
    table.show_header = False
    table.add_row(
        "tokens per word", f"{tokens['pieces_per_word']:.2f}", "English prose: 1.1 to 1.3"
    )
    table.add_row("unknown tokens", share(tokens["unknown"]), "")
    lengths = f"{tokens['mean']:.0f}, {tokens['p95']:.0f}, {tokens['longest']:,}"
    table.add_row("tokens: mean, 95%, maximum", lengths, f"context length {tokens['context']:,}")
    table.add_row("truncated texts", share(tokens["cut"]), "")
    if head := fit.get("pretraining"):
        about = f"from the checkpoint's {head['objective']} head"
        table.add_row("pseudo-perplexity", f"{head['perplexity']:.1f}", about)
    if distance := fit.get("distance"):
        about = f"{distance['times']:.1f} times that between halves of the reference"
        table.add_row("Frechet distance", f"{distance['frechet']:.3g}", about)
    if probe := fit.get("probe"):
        about = f"± {probe['margin']:.3f}; guessing: {probe['guessing']:.3f}"
        table.add_row("linear probe, accuracy", f"{probe['accuracy']:.3f}", about)
    return [table, *(Text(line) for line in fit["advice"])]


def _table(title: str | None, columns: Sequence[str]) -> Table:
    name = Text(title, "bold") if title else None
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("rows", "empty") else "left")
    return table
