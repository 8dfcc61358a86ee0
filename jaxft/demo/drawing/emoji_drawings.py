"""Emoji as two designers drew them, and their names: what the demo's DiT learns to draw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxft.demo.assets import Tarball, copy_members, once, read_member
from jaxft.demo.images import ATTRIBUTION, EMOJI, names_in_words
from jaxft.demo.rows import digest, write_csv

NOTO = Tarball(
    "emoji-datasource-google",
    "16.0.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
DRAWN_BY = ("twitter", "google")
# The package's categories -> what the tables call them.
GROUPS = {
    "Activities": "activities",
    "Animals & Nature": "animals",
    "Flags": "flags",
    "Food & Drink": "food",
    "Objects": "objects",
    "People & Body": "people",
    "Smileys & Emotion": "smileys",
    "Symbols": "symbols",
    "Travel & Places": "places",
}
HELD_OUT = "flags"
HEAD = ("image", "name", "group")
NOTO_ATTRIBUTION = """\
The drawings google-*.png are Noto Emoji, copyright Google LLC, licensed under the Apache License
2.0 (https://www.apache.org/licenses/LICENSE-2.0). They are copied unchanged from the npm package
emoji-datasource-google 16.0.0 by Cal Henderson (MIT licence), which took them from
https://github.com/googlefonts/noto-emoji.
"""


@dataclass(frozen=True)
class Drawing:
    """An emoji as one designer drew it: its file, its designer, its name in words, its group."""

    file: str
    by: str
    name: str
    group: str

    @property
    def row(self) -> tuple[str, str, str]:
        return f"images/{self.by}-{self.file}", self.name, self.group


def emoji_drawings() -> Path:
    """Return the folder with images/ (64-pixel PNGs), train.csv and test.csv: `image`, `name`,
    `group`.

    Every emoji without a skin tone, as Twitter and as Google drew it. Of each flag one of the two
    drawings is held out, at random by the sha256 of its name: the other one is in train.csv, with
    all drawings of the other groups.

    Source: npm `emoji-datasource-twitter` (the graphics are Twemoji, CC BY 4.0) and
    `emoji-datasource-google` (Noto Emoji, Apache 2.0): ATTRIBUTION.txt.
    """
    return once("emoji_drawings", (EMOJI, NOTO), write_drawings)


def write_drawings(twitter: Path, google: Path, to: Path) -> None:
    """Write both packages' drawings to one folder, and the two tables."""
    (to / "images").mkdir()
    train: list[Drawing] = []
    test: list[Drawing] = []
    for by, tarball in zip(DRAWN_BY, (twitter, google), strict=True):
        own = list(_drawings(tarball, by))
        wanted = {f"package/img/{by}/64/{one.file}": to / one.row[0] for one in own}
        copy_members(tarball, wanted)
        train += [one for one in own if not _held_out(one)]
        test += [one for one in own if _held_out(one)]
    for table, drawings in {"train.csv": train, "test.csv": test}.items():
        write_csv(to / table, HEAD, (one.row for one in drawings))
    (to / "ATTRIBUTION.txt").write_text(f"{ATTRIBUTION}\n{NOTO_ATTRIBUTION}")


def _drawings(tarball: Path, by: str) -> Iterator[Drawing]:
    """Yield a package's emoji that are in a group and that its designer has drawn."""
    described = json.loads(read_member(tarball, "package/emoji.json"))
    for entry, name in zip(described, names_in_words(described), strict=True):
        if entry["category"] in GROUPS and entry[f"has_img_{by}"]:
            yield Drawing(entry["image"], by, name, GROUPS[entry["category"]])


def _held_out(drawing: Drawing) -> bool:
    chosen = DRAWN_BY[digest(drawing.name) % len(DRAWN_BY)]
    return drawing.group == HELD_OUT and drawing.by == chosen
