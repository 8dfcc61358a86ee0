"""Aerial photos with a box round each tree crown, as an asset."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from PIL import Image

from jaxft.demo.assets import Wheel, once
from jaxft.demo.rows import write_csv

DEEPFOREST = Wheel(
    "deepforest",
    "2.1.0",
    "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
)
INSIDE = "deepforest/data"
COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label")
LABEL = "tree"
WIDE = "2019_YELL_2_528000_4978000_image_crop2"
OTHER = "2019_YELL_2_541000_4977000_image_crop"
SMALL = ("OSBS_029", "SOAP_061")
# Of the widest photo what is above this row of pixels is for training, the rest chooses the step.
HORIZON = 1800
LEAST_VISIBLE = 0.5  # of a crown on the edge, to be counted there

Box = tuple[int, int, int, int]


def trees() -> Path:
    """Return the folder with train.csv, eval.csv and test.csv, a box a row, and the photos they
    name.

    Trained on are the upper part of one photo and two small ones of other forests; the lower part
    of the first chooses the step, and another photo of the same forest is the test.

    Source: PyPI `deepforest` (MIT licence): photos of the National Ecological Observatory Network
    with crowns drawn by hand; Weinstein et al. (2020), https://doi.org/10.1111/2041-210X.13472.
    """
    return once("trees", DEEPFOREST, _write)


def _write(wheel: Path, to: Path) -> None:
    """Write the photos and the three tables."""
    tables: dict[str, list[tuple]] = {"train.csv": [], "eval.csv": [], "test.csv": []}
    with zipfile.ZipFile(wheel) as archive:
        for name in (*SMALL, OTHER):
            image, boxes = _photo(archive, name)
            image.save(to / f"{name}.png")
            table = tables["test.csv" if name == OTHER else "train.csv"]
            table += [(f"{name}.png", *box, LABEL) for box in boxes]
        image, boxes = _photo(archive, WIDE)
        for part, top, bottom in (("train", 0, HORIZON), ("eval", HORIZON, image.height)):
            file = f"{WIDE}_{part}.png"
            image.crop((0, top, image.width, bottom)).save(to / file)
            shown = filter(None, (_within(box, top, bottom) for box in boxes))
            tables[f"{part}.csv"] += [(file, *box, LABEL) for box in shown]
    for name, rows in tables.items():
        write_csv(to / name, COLUMNS, rows)


def _photo(archive: zipfile.ZipFile, name: str) -> tuple[Image.Image, list[Box]]:
    """Return a photo in RGB, and its crowns: left, top, right, bottom in pixels."""
    image = Image.open(io.BytesIO(archive.read(f"{INSIDE}/{name}.png"))).convert("RGB")
    root = ElementTree.fromstring(archive.read(f"{INSIDE}/{name}.xml"))
    boxes = []
    for one in root.iter("bndbox"):
        left, top, right, bottom = (
            int(float(one.findtext(corner) or "nan")) for corner in COLUMNS[1:5]
        )
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
    return image, boxes


def _within(box: Box, top: int, bottom: int) -> Box | None:
    """Return a box cut to the rows `top` to `bottom` of a photo; None if most is outside."""
    left, upper, right, lower = box
    cut = (left, max(upper, top) - top, right, min(lower, bottom) - top)
    return cut if cut[3] - cut[1] >= LEAST_VISIBLE * (lower - upper) else None
