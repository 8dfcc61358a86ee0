"""The example configs that are installed with jaxft: list them, read one, copy one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.config.yaml import read_yaml
from jaxft.errors import UserError, did_you_mean
from jaxft.storage.outputs import write_new

FOLDER = Path(__file__).parent.parent / "configs"  # in a clone, a link to the repository's configs
SCHEMA = re.compile(r"\A# yaml-language-server: .*\n(#\n)?")
ASSETS = re.compile(r"^#\s+jaxft assets ([\w ]+?)(\s{2,}.*|\s*)$", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """An example config.

    Attributes:
        name: of its file, without the ending.
        task: its `task.kind`.
        about: the first sentence of its comment.
        assets: the names of the checkpoint and data that `jaxft assets` downloads for it.
        text: the file's content.
    """

    name: str
    task: str
    about: str
    assets: tuple[str, ...]
    text: str


def list_examples() -> list[Example]:
    """Return all example configs in alphabetical order."""
    return [read_example(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]


def read_example(name: str) -> Example:
    """Return one example config; the name may end in `.yaml`.

    Raises:
        UserError: there is no config of that name.
    """
    stem = name.removesuffix(".yaml")
    known = [path.stem for path in sorted(FOLDER.glob("*.yaml"))]
    if stem not in known:
        raise UserError(f"There is no example config '{stem}'.", did_you_mean(stem, known))
    text = (FOLDER / f"{stem}.yaml").read_text(encoding="utf-8")
    fields: dict[str, Any] = read_yaml(text, stem)[0]
    brought = ASSETS.search(text)
    assets = tuple(brought[1].split()) if brought else ()
    return Example(stem, fields["task"]["kind"], _about(text), assets, text)


def copy_example(name: str, file: Path | None = None) -> Path:
    """Write an example config into a file of one's own, and return the file.

    The commands in its comment name that file; the line for editors, which points into a clone,
    is left out.

    Args:
        name: of the example.
        file: where to write it; NAME.yaml in the working directory by default.

    Raises:
        UserError: there is no such config, or the file exists.
    """
    example = read_example(name)
    target = file if file is not None else Path(f"{example.name}.yaml")
    if target.is_dir():
        target = target / f"{example.name}.yaml"
    text = SCHEMA.sub("", example.text).replace(f"configs/{example.name}.yaml", str(target))
    write_new(target, text)
    return target


def _about(text: str) -> str:
    """Return the comment's first sentence: its lines up to the first command."""
    lines = []
    for line in SCHEMA.sub("", text).splitlines():
        if not line.startswith("# ") or line.startswith("#  "):
            break
        lines.append(line.removeprefix("# "))
    return re.split(r"\. (?=[A-Z])|;", " ".join(lines))[0].rstrip(".:") + "."
