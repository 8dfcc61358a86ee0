"""Scenes of emoji with the group of each pixel's emoji, as an asset."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxft.data.image.images import decode
from jaxft.demo.assets import once, read_member
from jaxft.demo.detection.scenes import texture
from jaxft.demo.images import ATTRIBUTION, EMOJI, emoji

SIDE = 224  # pixels of a scene
SCENES = {"train": 3000, "eval": 100, "test": 200}
# The package's categories -> the class of their pixels; emoji of the others are in no scene.
GROUPS = {
    "Smileys & Emotion": "smileys",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "places",
    "Flags": "flags",
}
CLASSES = ("background", *GROUPS.values())
FEWEST, MOST = 3, 6  # emoji of a scene
SMALLEST, LARGEST = 0.25, 0.5  # of an emoji's edge, as a share of the scene's
TURN = 25.0  # degrees, either way
OPAQUE = 128  # levels of alpha from which a pixel is of the emoji


def emoji_masks() -> Path:
    """Return the folder with train/, eval/ and test/, each with images/, masks/ and labels.txt.

    The emoji of the test are those that `emoji` holds out. A scene follows from its number alone.

    Source: as `emoji` (ATTRIBUTION.txt).
    """
    folder = emoji()
    return once("emoji_masks", EMOJI, lambda tarball, to: _write(tarball, folder, to))


def _write(tarball: Path, folder: Path, to: Path) -> None:
    groups = read_groups(tarball)
    for split, count in SCENES.items():
        table = "test.csv" if split == "test" else "train.csv"
        write_scenes(by_class(folder, table, groups), to / split, list(SCENES).index(split), count)
    (to / "ATTRIBUTION.txt").write_text(ATTRIBUTION)


def read_groups(tarball: Path) -> dict[str, str]:
    """Return the package's category of each emoji, by the name of its file."""
    described = json.loads(read_member(tarball, "package/emoji.json"))
    return {one["image"]: one["category"] for one in described}


def by_class(folder: Path, table: str, groups: Mapping[str, str]) -> dict[str, list[Image.Image]]:
    """Return the emoji of a table without a skin tone, in RGBA, by the class of their pixels."""
    chosen: dict[str, list[Image.Image]] = {name: [] for name in GROUPS.values()}
    with (folder / table).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            group = GROUPS.get(groups.get(Path(row["image"]).name, ""))
            if group is not None and row["tone"] == "none":
                chosen[group].append(decode(folder / row["image"]).convert("RGBA"))
    return chosen


def write_scenes(
    chosen: Mapping[str, Sequence[Image.Image]], to: Path, stream: int, count: int
) -> None:
    """Write so many scenes and their masks.

    Args:
        chosen: emoji by class.
        to: the folder.
        stream: of random numbers.
        count: of scenes.
    """
    for part in ("images", "masks"):
        (to / part).mkdir(parents=True)
    for number in range(count):
        scene, mask = compose(chosen, SIDE, np.random.default_rng([stream, number]))
        scene.save(to / "images" / f"{number:04d}.jpg", quality=92)
        Image.fromarray(mask).save(to / "masks" / f"{number:04d}.png")
    (to / "labels.txt").write_text("\n".join(CLASSES) + "\n")


def compose(
    chosen: Mapping[str, Sequence[Image.Image]], side: int, draw: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Return a scene and its mask, `[side, side]` uint8 of `CLASSES`; later emoji lie on top.

    Args:
        chosen: emoji by class; each class is as likely.
        side: pixels of the scene.
        draw: where all chance comes from.
    """
    scene, mask = texture(side, draw), np.zeros((side, side), np.uint8)
    for _ in range(int(draw.integers(FEWEST, MOST + 1))):
        label = int(draw.integers(1, len(CLASSES)))
        own = chosen[CLASSES[label]]
        edge = round(side * draw.uniform(SMALLEST, LARGEST))
        one = own[int(draw.integers(len(own)))].resize((edge, edge), Image.Resampling.LANCZOS)
        one = one.rotate(draw.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
        left, top = (int(draw.integers(side - length + 1)) for length in one.size)
        scene.paste(one, (left, top), one)
        solid = np.asarray(one.getchannel("A")) >= OPAQUE
        mask[top : top + one.height, left : left + one.width][solid] = label
    return scene, mask
