"""Predictions in a terminal: labels, numbers and entities for a reader, all else as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from jaxft.cli.parts.terminal import echo
from jaxft.report.terminal.console import EscapingConsole

COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def print_in_color(predictions: Iterable[Mapping[str, Any]]) -> None:
    """Print each prediction as it comes: `spam 0.999  win money now`, or marked entities, or JSON.

    A text is cut to the width of the terminal; `--json` prints it whole, with all probabilities.
    """
    console, colors = EscapingConsole(highlight=False), dict[str, str]()
    for line in predictions:
        if "entities" in line:
            console.print(marked(line, colors), soft_wrap=True)
        elif (verdict := labelled(line, colors)) is not None:
            console.print(verdict, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            echo(json.dumps(line, ensure_ascii=False))


def labelled(line: Mapping[str, Any], colors: dict[str, str]) -> Text | None:
    """Return a prediction of classes or of a number on one line; None of any other.

    Args:
        line: `text` or `file`, and `label` (one or several) with `probabilities`, or `value`.
        colors: class -> color, to which new classes are added.
    """
    read = line.get("text", line.get("file"))
    if not isinstance(read, str):
        return None
    shown, probabilities = Text(), line.get("probabilities")
    if isinstance(line.get("value"), float):
        shown.append(f"{line['value']:.4g}", "bold")
    elif isinstance(probabilities, Mapping) and "label" in line:
        labels = line["label"] if isinstance(line["label"], list) else [line["label"]]
        for label in labels:
            color = colors.setdefault(label, COLORS[len(colors) % len(COLORS)])
            share = probabilities.get(label)
            number = "" if share is None else f" {share:.3f}"
            shown.append(f"{' ' if shown else ''}{label}{number}", f"bold {color}")
        if not labels:
            shown.append("none", "dim")
    else:
        return None
    cut = f" [{line['cut']:,} tokens cut]" if line.get("cut") else ""
    return shown.append(cut, "dim").append(f"  {' '.join(read.split())}")


def marked(line: Mapping[str, Any], colors: dict[str, str]) -> Text:
    """Return a text whose entities are colored, with type and score after each.

    Args:
        line: `text`, and `entities` with `type`, `start`, `end` and `score`.
        colors: type -> color, to which new types are added.
    """
    text, shown, done = line["text"], Text(), 0
    for one in line["entities"]:
        color = colors.setdefault(one["type"], COLORS[len(colors) % len(COLORS)])
        shown.append(text[done : one["start"]])
        shown.append(text[one["start"] : one["end"]], f"bold {color}")
        shown.append(f" [{one['type']} {one['score']:.2f}]", color)
        done = one["end"]
    shown.append(text[done:])
    return shown
