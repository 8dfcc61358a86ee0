"""Why crowns in another forest are missed: the forest, or the detector?

`python -m benchmarks.other_forest` cuts the test photo of configs/detect.yaml at its middle, and
scores its right half twice: with the run of the config, which has seen other photos alone and is
trained where it is not there yet, and with the same recipe on the left half.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.measure import record
from jaxft.demo.rows import write_csv

CONFIG, PHOTO = "configs/detect.yaml", Path("assets/trees/test.csv")
# The half has a seventh of the config's rows; it is read more often.
LENGTH = ("train.length=12 epochs", "train.evaluate_every=6 epochs", "checkpoint.every=6 epochs")
SMALLEST = 3.0  # pixels of a crown that is cut, at least

Row = dict[str, str]


def boxes_between(rows: Sequence[Row], first: int, end: int) -> list[Row]:
    """Return what is left of boxes between two columns of pixels, counted from the first."""
    boxes = []
    for row in rows:
        left, right = (min(max(float(row[side]), first), end) - first for side in ("xmin", "xmax"))
        if right - left >= SMALLEST:
            boxes.append({**row, "xmin": f"{left}", "xmax": f"{right}"})
    return boxes


def write_halves(table: Path, to: Path) -> None:
    """Write left and right half of the one photo of a table, and a table for each."""
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    with Image.open(table.parent / rows[0]["image_path"]) as photo:
        middle = photo.width // 2
        for name, first, end in (("left", 0, middle), ("right", middle, photo.width)):
            photo.crop((first, 0, end, photo.height)).save(to / f"{name}.png")
            boxes = [row | {"image_path": f"{name}.png"} for row in boxes_between(rows, first, end)]
            write_csv(to / f"{name}.csv", rows[0], (row.values() for row in boxes))


def jaxft(*words: str) -> str:
    """Run the command and return what it prints to standard output."""
    command = [sys.executable, "-m", "jaxft", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Score the right half by both, and record it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/detect"), help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of both runs")
    chosen = parser.parse_args()
    run: Path = chosen.run
    if not (run / "result.json").exists():
        jaxft("train", CONFIG, f"run.dir={run.parent}", f"run.name={run.name}", *chosen.overrides)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_halves(PHOTO, folder)
        right = f"boxes:{folder}/right.csv"
        others = json.loads(jaxft("eval", str(run), "--data", right))["metrics"]["map_50"]
        splits = [f"data.{split}={right}" for split in ("eval", "test")]
        where = [f"run.dir={folder}", "run.name=left", f"data.train=boxes:{folder}/left.csv"]
        jaxft("train", CONFIG, *where, *splits, *LENGTH, *chosen.overrides)
        same = json.loads((folder / "left/result.json").read_text())["metrics"]["map_50"]
    scores = {"trained on other photos": others, "trained on the left half": same}
    record("other_forest", scores)
    print(scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
