"""What a run says of texts, in a terminal: entities in colour, all else as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


def print_in_colour(predictions: Iterable[Mapping[str, Any]]) -> None:
    """Print each line as it comes: a text with its entities marked, or JSON."""
    console, colours = Console(highlight=False), dict[str, str]()
    for line in predictions:
        if "entities" in line:
            console.print(marked(line, colours), soft_wrap=True)
        else:
            typer.echo(json.dumps(line, ensure_ascii=False))


def marked(line: Mapping[str, Any], colours: dict[str, str]) -> Text:
    """Return a text whose entities are in colour, with type and score behind each.

    Args:
        line: `text`, and `entities` with `type`, `start`, `end` and `score`.
        colours: type -> colour, to which new types are added.
    """
    text, shown, done = line["text"], Text(), 0
    for one in line["entities"]:
        colour = colours.setdefault(one["type"], COLOURS[len(colours) % len(COLOURS)])
        shown.append(text[done : one["start"]])
        shown.append(text[one["start"] : one["end"]], f"bold {colour}")
        shown.append(f" [{one['type']} {one['score']:.2f}]", colour)
        done = one["end"]
    shown.append(text[done:])
    return shown
