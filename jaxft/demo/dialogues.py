"""Questions and answers as an asset: a small English corpus as rows of `prompt` and `answer`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import yaml

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import digest

CHATTERBOT = Wheel(
    "chatterbot-corpus",
    "1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
ENGLISH = "chatterbot_corpus/data/english/"


def dialogues() -> Path:
    """Return the folder with train.jsonl (814 rows) and test.jsonl (84): columns `prompt` and
    `answer`.

    The rows are the first two lines of the corpus' English conversations, each pair once (a
    thousand of them are ten that come again and again). A row is held out
    for the test where the sha256 of its prompt, in small letters, is divisible by 10 as an
    integer, so that no prompt is in both.

    Source: PyPI `chatterbot-corpus` (BSD licence), contributed by its users.
    """
    return once("dialogues", CHATTERBOT, _write)


def held_out(prompt: str) -> bool:
    """Return whether a prompt belongs to test.jsonl: it depends on its words alone."""
    return digest(prompt.strip().lower()) % 10 == 0


def _write(wheel: Path, to: Path) -> None:
    """Write train.jsonl and test.jsonl, in the order of the files and of what is in them."""
    rows: dict[str, dict[str, None]] = {"train.jsonl": {}, "test.jsonl": {}}  # ordered sets
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not (name.startswith(ENGLISH) and name.endswith(".yml")):
                continue
            for prompt, answer, *_ in yaml.safe_load(archive.read(name))["conversations"]:
                row = {"prompt": prompt.strip(), "answer": answer.strip()}
                file = "test.jsonl" if held_out(prompt) else "train.jsonl"
                rows[file][json.dumps(row, ensure_ascii=False) + "\n"] = None
    for name, lines in rows.items():
        (to / name).write_text("".join(lines), encoding="utf-8")
