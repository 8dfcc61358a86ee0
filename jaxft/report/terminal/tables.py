"""The tables a run prints before and after it trains, each no wider than 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxft.numbers import count, rate, score, share, size

NAMED = 6  # names shown before "and N more"
BAR = 16  # columns of the widest rate bar


def loading_table(
    loaded: Sequence[str], new: Sequence[str], unused: Sequence[str], notes: Sequence[str] = ()
) -> RenderableType:
    """Return what became of the checkpoint's tensors: counts, and the names of new or unused ones.

    Args:
        loaded, new, unused: names.
        notes: what was loaded in another shape than the checkpoint's, a sentence each.
    """
    table = _table("checkpoint", [("", "left"), ("tensors", "right"), ("which", "left")])
    table.add_row("loaded", f"{len(loaded):,}", "")
    for title, names in (("newly initialized", new), ("in the file, unused", unused)):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            table.add_row(title, f"{len(names):,}", ", ".join(names[:NAMED]) + more)
    if notes:
        table.add_row("in another shape", f"{len(notes):,}", Text("\n".join(notes)))
    return table


def data_table(splits: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return a table of the data: one line a split, before anything trains.

    Args:
        splits: mappings with `split`, `examples`, `labels` (label -> examples; none where there
            are no classes), and, of texts, `tokens`, `truncated` (examples cut), `unknown`
            (tokens); perhaps `skipped` (bad rows), `note`, `drawn` and `warnings`, which are said
            below the table.
    """
    columns = [("split", "left"), ("examples", "right")]
    texts = all("tokens" in split for split in splits)
    if texts:
        columns += [(name, "right") for name in ("tokens", "each", "cut", "unknown tokens")]
    classes = any(split["labels"] for split in splits)
    table = _table("data", columns + [("labels", "left")] * classes)
    for split in splits:
        cells = [split["split"], f"{split['examples']:,}"]
        examples, tokens = max(split["examples"], 1), max(split.get("tokens", 1), 1)
        if texts:
            cells += [
                count(split["tokens"]),
                f"{split['tokens'] / examples:.1f}",
                share(split["truncated"] / examples),
                share(split["unknown"] / tokens),
            ]
        if classes:
            labels = split["labels"].items()
            cells.append(", ".join(f"{name} {share(many / examples)}" for name, many in labels))
        table.add_row(*cells)
    warned = [f"{one['split']}: {line}." for one in splits for line in one.get("warnings", ())]
    notes = [Text(line) for split in splits for line in _data_notes(split)]
    return Group(table, *(Text(line, "bold yellow") for line in warned), *notes)


def _data_notes(split: Mapping[str, Any]) -> list[str]:
    """Return what a person should know of a split beside its counts."""
    rows = "bad row was" if split.get("skipped") == 1 else "bad rows were"
    notes = [f"{split['skipped']:,} {rows} left out."] if split.get("skipped") else []
    if split.get("note"):
        notes.append(f"{split['note']}.")
    notes += [
        f"{share(part['share'])} of the samples are from {part['source']}, each row "
        f"{part['times']:.2g} times per epoch."
        for part in split.get("drawn", ())
    ]
    return [f"{split['split']}: {line}" for line in notes]


def group_table(table: Mapping[str, Any]) -> RenderableType:
    """The LayerTable by group, with what a step costs below it.

    Args:
        table: the content of `table.json`: `groups`, `rows`, `warnings`, and `flops` with `step`
            and `full`, the FLOPs of a step as it is and with nothing frozen.
    """
    columns = ["group", "depth", "leaves", "params", "peak rate", "schedule", "decay", "optimizer"]
    sides = ["left", *["right"] * 4, "left", "right", "right"]
    shown = _table("layers", list(zip(columns, sides, strict=True)))
    for group in table["groups"]:
        trains = group["trainable"]
        shown.add_row(
            group["name"],
            _span_of_depths(group, table["rows"]),
            f"{group['leaves']:,}",
            count(group["parameters"]),
            rate(group["peak_rate"]) if trains else "frozen",
            group["schedule"] if trains else "",
            f"{group['weight_decay']:g}" if trains else "",
            size(group["optimizer_bytes"]) if trains else "",
            style=None if trains else "cyan",
        )
    warnings = [Text(f"{line}.", style="bold yellow") for line in table.get("warnings", ())]
    return Group(shown, _totals(table), *warnings)


def depth_table(table: Mapping[str, Any]) -> RenderableType:
    """The LayerTable by depth, from the input up, each rate as a bar.

    Args:
        table: the content of `table.json`.
    """
    columns = [("depth", "right"), ("part", "left"), ("group", "left"), ("leaves", "right")]
    columns += [("params", "right"), ("peak rate", "right"), ("", "left")]
    shown = _table("depths", columns)
    lines: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for row in table["rows"]:
        lines.setdefault((row["depth"], part_of(row["name"]), row["group"]), []).append(row)
    widest = max((row["peak_rate"] for row in table["rows"]), default=0) or 1
    for (depth, part, group), rows in sorted(lines.items(), key=lambda line: line[0]):
        peak = max(row["peak_rate"] for row in rows)
        trains = any(row["trainable"] for row in rows)
        shown.add_row(
            str(depth),
            part,
            group,
            str(len(rows)),
            count(sum(row["parameters"] for row in rows)),
            rate(peak) if trains else "frozen",
            Text("━" * max(round(BAR * peak / widest), 1) if trains else "", "magenta"),
            style=None if trains else "cyan",
        )
    return shown


def segment_table(
    segments: Sequence[Mapping[str, Any]], flops: Mapping[str, int]
) -> RenderableType:
    """Return the cost of a step in each segment of the model, from the input up.

    Args:
        segments: rows as `cost.segment_flops` gives them.
        flops: with `step`, the FLOPs of the step.
    """
    names = ("forward", "input_gradient", "weight_gradient")
    columns = [("segment", "left"), ("forward", "right"), ("pass-through", "right")]
    columns += [("own gradient", "right"), ("of the step", "right")]
    shown = _table("cost of a step, in FLOP", columns)

    def add(title: str, costs: Sequence[int]) -> None:
        cells = [count(cost) if cost else "" for cost in costs]
        # A model that trains nothing here at all would have no step.
        shown.add_row(title, *cells, share(sum(costs) / max(flops["step"], 1)))

    for row in segments:
        if any(row[name] for name in names):
            add(row["segment"], [row[name] for name in names])
    add("all", [sum(row[name] for row in segments) for name in names])
    return shown


def result_table(result: Mapping[str, Any]) -> RenderableType:
    """The scores of the last evaluation, beside the baselines where there are any.

    Args:
        result: the content of `result.json`.
    """
    title = f"{result['split']}: {result['examples']:,} examples, step {result['step']:,}"
    table = _table(None, [("", "left"), ("", "right")])
    for name, value in result["metrics"].items():
        table.add_row(name, Text(score(value), "bold"))
    for name, value in result.get("baselines", {}).items():
        table.add_row(Text(name, "dim"), Text(score(value), "dim"))
    warned = [f"{result['split']}: {line}." for line in result.get("warnings", ())]
    # Above the table and not its title, which would be wrapped to the table's width.
    return Group(Text(title, "bold"), table, *(Text(line, "bold yellow") for line in warned))


def checkpoint_names(checkpoint: Any) -> str:
    """Return a config's `model.checkpoint` as text: a name, or those of two towers."""
    both = checkpoint.values() if isinstance(checkpoint, Mapping) else [checkpoint]
    return " and ".join(map(str, both))


def part_of(name: str) -> str:
    """The part of a model that a parameter is in: `blocks/3`, `embeddings`, `head`."""
    parts = name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def _table(title: str | None, columns: Sequence[tuple[str, Any]]) -> Table:
    name = Text(title, "bold") if title else None
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, justify in columns:
        # The widest columns wrap first, which are names and lists: nothing is cut but bars.
        overflow: Literal["fold", "ellipsis"] = "fold" if column else "ellipsis"
        table.add_column(column, justify=justify, no_wrap=not column, overflow=overflow)
    table.show_header = any(column for column, _ in columns)
    return table


def _span_of_depths(group: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    depths = [row["depth"] for row in rows if row["group"] == group["name"]]
    if not depths:
        return ""
    low, high = min(depths), max(depths)
    return str(low) if low == high else f"{low}-{high}"


def _totals(table: Mapping[str, Any]) -> Text:
    """Return how much trains, and what freezing saves."""
    total = sum(group["parameters"] for group in table["groups"])
    training = sum(group["parameters"] for group in table["groups"] if group["trainable"])
    text = Text(f"{count(training)} of {count(total)} parameters train", "bold")
    flops = table.get("flops") or {}
    if flops.get("step") and flops.get("full"):
        text.append(f"; a step takes {count(flops['step'], 'FLOP')}, ", "not bold")
        text.append(f"{share(1 - flops['step'] / flops['full'])} saved by freezing", "not bold")
    return text
