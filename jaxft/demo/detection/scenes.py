"""Scenes of emoji on textures with a box round each, as an asset."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxft.data.image.images import decode
from jaxft.demo.assets import once
from jaxft.demo.images import ATTRIBUTION, emoji
from jaxft.demo.rows import write_csv

SIDE = 112  # pixels of a scene
SCENES = {"train": 2000, "eval": 100, "test": 300}
COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
LABEL = "emoji"
MOST = 8  # emoji of a scene
SMALLEST, LARGEST = 0.11, 0.5  # of an emoji's longer edge, as a share of the scene's
TURN = 25.0  # degrees, either way
OPAQUE = 128  # levels of alpha from which a pixel is of the emoji
HIDDEN = 0.2  # of an emoji may lie under another
TRIES = 10  # for a place that is free

Box = tuple[int, int, int, int]


def scenes() -> Path:
    """Return the folder with train.csv, eval.csv and test.csv, a box a row, and their scenes.

    The emoji of the test are those that `emoji` holds out. A scene follows from its number alone;
    a box is what is opaque of an emoji, turned and resized.

    Source: as `emoji` (ATTRIBUTION.txt).
    """
    folder = emoji()
    return once("scenes", (), lambda to: write_scenes(folder, to, SCENES))


def write_scenes(folder: Path, to: Path, counts: dict[str, int]) -> None:
    """Write so many scenes of each split.

    Args:
        folder: of the emoji.
        to: where.
        counts: split -> scenes.
    """
    (to / "images").mkdir()
    for split, count in counts.items():
        own = read_emoji(folder, "test.csv" if split == "test" else "train.csv")
        rows: list[tuple] = []
        for number in range(count):
            draw = np.random.default_rng([list(SCENES).index(split), number])
            image, boxes = compose(own, SIDE, draw)
            name = f"images/{split}-{number:05d}.jpg"
            image.save(to / name, quality=92)
            rows += [(name, *box, LABEL) for box in boxes]
        write_csv(to / f"{split}.csv", COLUMNS, rows)
    (to / "ATTRIBUTION.txt").write_text(ATTRIBUTION)


def read_emoji(folder: Path, table: str) -> list[Image.Image]:
    """Return the emoji of a table, in RGBA."""
    with (folder / table).open(newline="", encoding="utf-8") as file:
        return [decode(folder / row["image"]).convert("RGBA") for row in csv.DictReader(file)]


def compose(
    emoji: Sequence[Image.Image], side: int, draw: np.random.Generator
) -> tuple[Image.Image, list[Box]]:
    """Return a scene of one emoji or more, and the box of each: left, top, right, bottom.

    Args:
        emoji: to choose from, in RGBA.
        side: pixels of the scene.
        draw: where all chance comes from.
    """
    scene, boxes = texture(side, draw), list[Box]()
    for _ in range(int(draw.integers(1, MOST + 1))):
        one = _changed(emoji[int(draw.integers(len(emoji)))], side, draw)
        for _ in range(TRIES):
            left, top = (int(draw.integers(side - edge + 1)) for edge in one.size)
            box = (left, top, left + one.width, top + one.height)
            if all(_shared(box, other) <= HIDDEN for other in boxes):
                scene.paste(one, (left, top), one)
                boxes.append(box)
                break
    return scene, boxes


def texture(side: int, draw: np.random.Generator) -> Image.Image:
    """Return a background: patches of color, waves and grain, each of a strength of its own."""
    cells = int(draw.integers(2, 24))
    colors = draw.integers(0, 256, (cells, cells, 3)) * draw.uniform(0.2, 1.0)
    colors += draw.uniform(0, 255, 3) * draw.uniform(0, 0.6)
    patches = Image.fromarray(colors.clip(0, 255).astype(np.uint8))
    pixels = np.asarray(patches.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    rows, columns = np.mgrid[:side, :side] / side
    angle, waves = draw.uniform(0, np.pi), draw.uniform(1, 30)
    phase = 2 * np.pi * waves * (rows * np.sin(angle) + columns * np.cos(angle))
    pixels = pixels + (draw.uniform(0, 60) * np.sin(phase))[..., None]
    pixels += draw.normal(size=(side, side, 1)) * draw.uniform(0, 30)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _changed(one: Image.Image, side: int, draw: np.random.Generator) -> Image.Image:
    """Return an emoji turned and resized, cut to what is opaque of it."""
    turned = one.rotate(draw.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    turned = _cut(turned)
    longest = side * np.exp(draw.uniform(np.log(SMALLEST), np.log(LARGEST)))
    times = longest / max(turned.size)
    edges = (max(4, round(edge * times)) for edge in turned.size)
    width, height = edges
    return _cut(turned.resize((width, height), Image.Resampling.LANCZOS))


def _cut(one: Image.Image) -> Image.Image:
    """Return what is opaque of an emoji."""
    return one.crop(one.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE)).getbbox())


def _shared(box: Box, other: Box) -> float:
    """Return the area that two boxes share, as a share of the smaller."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, other)]
    return max(wide, 0) * max(high, 0) / min(areas)
