"""Pages of docs/reference/: every config key from its schema, every command from its --help.

`python -m docs.reference_pages` writes them; with `--check` it says which are out of date. `make
docs` and `make lint` do so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import typer.main

from jaxft.cli.main import app
from jaxft.config.keys import Key, describe_keys
from jaxft.config.schema import Config
from jaxft.config.tasks import task_sections
from jaxft.errors import UserError
from jaxft.storage.files import write_atomic

FOLDER = Path(__file__).parent / "reference"
KEYS_INTRO = """# Config keys

Every key of a config with its type and default, as `jaxft config` prints them; \
[schema.json](../schema.json) is the same for an editor. A key marked *fixed* cannot be changed \
when a run resumes. On the command line a key is set by its dotted name, `optimizer.lr=3e-5`, and \
an item of a list by its number, `groups.0.lr_mult=10`.
"""
COMMANDS_INTRO = """# Commands

Every command with its arguments and options, as `jaxft COMMAND --help` prints them. Exit codes \
are listed under [runs](../runs.md#before-and-in-scripts).
"""


def keys_page() -> str:
    """Return the page of all config keys: a table for each section, and for each kind of task."""
    text = KEYS_INTRO
    kinds = tuple(task_sections())
    for title, keys in groupby(describe_keys(), key=lambda key: _title(key, kinds)):
        top = title.split(".")[0]
        about = Config.model_fields[top].description if title == top else None
        text += f"\n## {title}\n\n" + (f"{_sentence(about)}\n\n" if about else "")
        text += _table(("key", "type", "default", "meaning", "on resume"), map(_key_cells, keys))
    return text


def _title(key: Key, kinds: tuple[str, ...]) -> str:
    """Return the section of a key; of a key that one kind of task has, with that kind."""
    top = re.split(r"[.\[]", key.name)[0]
    kind = re.search(r" \((\w+)\)$", key.meaning)
    return f"{top}.kind={kind[1]}" if top == "task" and kind and kind[1] in kinds else top


def _key_cells(key: Key) -> tuple[str, ...]:
    unit = f" ({key.unit})" if key.unit else ""
    default = key.default if key.default == "(required)" else f"`{key.default}`"
    meaning = re.sub(r" \(\w+\)$", "", key.meaning) if key.name.startswith("task.") else key.meaning
    return f"`{key.name}`", key.type + unit, default, meaning, key.resume


def commands_page() -> str:
    """Return the page of all commands: usage, meaning, arguments and options."""
    text = COMMANDS_INTRO
    for name, command in _commands("jaxft", typer.main.get_command(app)):
        arguments: list[tuple[str, ...]] = []
        options: list[tuple[str, ...]] = []
        for parameter in command.params:
            if not parameter.hidden:
                rows = arguments if parameter.param_type_name == "argument" else options
                rows.append(_parameter_cells(parameter))
        shown = " ".join([name, "[OPTIONS]", *(cells[0].strip("`") for cells in arguments)])
        text += f"\n## {name}\n\n{_sentence(command.help or '')}\n\n```text\n{shown}\n```\n\n"
        text += _table(("argument or option", "meaning", "default"), [*arguments, *options])
    return text


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, with its whole name, in the order of the help."""
    inner: Mapping[str, Any] = getattr(command, "commands", {})
    if not inner or name == "jaxft":
        yield name, command
    for word, one in inner.items():
        yield from _commands(f"{name} {word}", one)


def _parameter_cells(parameter: Any) -> tuple[str, str, str]:
    """Return an argument's or option's name, its meaning and its default."""
    value = parameter.metavar or parameter.name.upper()
    if parameter.param_type_name == "argument":
        name = value if parameter.required else f"[{value.strip('[]')}]"
    else:
        name = ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {value}")
    default = parameter.default
    if default in (None, False, (), []) or callable(default) or parameter.required:
        default = ""
    shown = f"`{default}`" if default != "" else ""
    return f"`{name}`", parameter.help or "", shown


def _sentence(text: str) -> str:
    """Return a text on one line, with a capital and a full stop."""
    line = " ".join(text.split())
    return line[:1].upper() + line[1:].rstrip(".") + "."


def _table(head: tuple[str, ...], rows: Any) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def pages() -> dict[Path, str]:
    """Return the text of every generated page by its file."""
    return {FOLDER / "config.md": keys_page(), FOLDER / "commands.md": commands_page()}


def main(words: list[str]) -> int:
    """Write the pages, or name those that are out of date."""
    if unknown := set(words) - {"--check"}:
        raise UserError(f"There is no option {' '.join(sorted(unknown))}.", "There is --check.")
    texts = pages()
    stale = [path for path, text in texts.items() if not _is_current(path, text)]
    for path in stale:
        if words:
            print(f"{path.relative_to(FOLDER.parent.parent)} is out of date: make docs")
        else:
            write_atomic(path, texts[path])
    return 1 if words and stale else 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
