"""What a teacher is worth: the lower three of MiniLM's six blocks, with the whole one as teacher.

`python -m benchmarks.distillation` trains `configs/sentiment.yaml`, the teacher, where its run is
not there yet, and `configs/distill.yaml` with seeds 0, 1 and 2: with the teacher, and by the same
recipe from the labels alone. It prints each test accuracy and both means.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.domain_gain import trained_export
from benchmarks.measure import record
from benchmarks.seeds import seeded_scores
from jaxft.config.load import load_config

TEACHER, STUDENT = "configs/sentiment.yaml", "configs/distill.yaml"
SEEDS, BLOCKS = 3, 3


def write_lower_blocks(checkpoint: Path, blocks: int, folder: Path) -> str:
    """Copy a checkpoint whose config.json then has its lower blocks only."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = blocks
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return str(folder)


def main() -> int:
    """Train all, print each seed's test accuracy, and record them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/sentiment"), help="the teacher's")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of every run")
    options = parser.parse_args()
    teacher = trained_export(TEACHER, options.run, options.overrides)
    original = Path(str(load_config(TEACHER).model.checkpoint))
    with tempfile.TemporaryDirectory() as scratch:
        student = write_lower_blocks(original, BLOCKS, Path(scratch) / "student")
        tasks = {
            "with a teacher": [f"task.teacher={teacher}"],
            "labels alone": ["task={kind: text_classification}"],
        }
        own = [f"model.checkpoint={student}"]
        variants = {name: [*own, *task, *options.overrides] for name, task in tasks.items()}
        scores = seeded_scores(STUDENT, variants, Path(scratch), SEEDS)
    record("distillation", scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
