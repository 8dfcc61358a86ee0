"""Predictions in a terminal: entities in color, all else as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.text import Text

from jaxft.cli.parts.terminal import echo
from jaxft.report.terminal.console import EscapingConsole

COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def print_in_color(predictions: Iterable[Mapping[str, Any]]) -> None:
    """Print each prediction as it comes: a text with its entities marked, or JSON."""
    console, colors = EscapingConsole(highlight=False), dict[str, str]()
    for line in predictions:
        if "entities" in line:
            console.print(marked(line, colors), soft_wrap=True)
        else:
            echo(json.dumps(line, ensure_ascii=False))


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
