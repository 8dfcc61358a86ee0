"""What a large contrastive batch is worth: recall with all of a step's rows as negatives.

`python -m benchmarks.large_batches` trains `configs/visual_search.yaml` with its image tower frozen
(its output is cached) and batches of 256 in 8 micro-batches of 32, with seeds 0, 1 and 2: with all
256 as negatives, and with those of a micro-batch alone, as plain accumulation has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import jaxft
from benchmarks.measure import record
from benchmarks.seeds import seeds
from jaxft.config.load import load_config
from jaxft.training import phase

CONFIG = "configs/visual_search.yaml"
SEEDS = 3
RECIPE = (
    'groups.1.match="vision/.*"',
    "data.batch_size=256",
    "train.accumulate=8",
    "train.evaluate_every=8 epochs",
    "checkpoint.every=8 epochs",
)
VARIANTS = ("all rows", "micro-batch")


def train(variant: str, overrides: list[str]) -> None:
    """Train one run in this process."""
    if variant == "micro-batch":
        phase.compared_of = lambda setup, compute: None
    jaxft.train(load_config(CONFIG, overrides), resume=True, quiet=True)


def main() -> None:
    """Train, or print and record what the runs score on the test rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary one if not set")
    parser.add_argument("--train", choices=VARIANTS, help="train one run with overrides")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    if asked.train:
        return train(asked.train, asked.overrides)
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="jaxft-large-batches-"))
    each: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in range(SEEDS):
        for name in VARIANTS:
            run = folder / f"{name.replace(' ', '-')}-{seed}"
            if not (run / "result.json").exists():
                where = [f"run.dir={folder}", f"run.name={run.name}"]
                words = ["--train", name, *seeds(seed), *RECIPE, *where]
                command = [sys.executable, "-m", "benchmarks.large_batches", *words]
                subprocess.run(command, check=True)
            result = json.loads((run / "result.json").read_text())
            each[name].append(result["metrics"]["recall_at_10"])
            print(f"seed {seed}, {name}: {each[name][-1]:.3f}", flush=True)
    print({name: round(mean(recalls), 3) for name, recalls in each.items()})
    return record("large_batches", {"recall_at_10": each})


if __name__ == "__main__":
    main()
