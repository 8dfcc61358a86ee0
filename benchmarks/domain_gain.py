"""What domain adaptation is worth: sentiment from the adapted checkpoint, and from the original.

`python -m benchmarks.domain_gain` trains `configs/domain_adapt.yaml` where its run is not there
yet, exports it, and trains sentiment on the same 500 reviews from both and from drawn weights, by
one recipe, with seeds 0, 1 and 2. The adaptation has read no label, and no test review.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import record
from benchmarks.scratch import write_scratch
from benchmarks.seeds import seeded_scores
from jaxft.config.load import load_config

ADAPT, SENTIMENT = "configs/domain_adapt.yaml", "configs/sentiment.yaml"
SEEDS = 3
# All of it trains: the checkpoint has two blocks.
RECIPE = (
    "data.train=csv:assets/reviews/train.csv[:500]",
    "groups=[]",
    "layer_decay.rate=1",
    "optimizer.lr=5e-4",
    "train.length=6 epochs",
    "train.evaluate_every=1 epoch",
    "checkpoint.every=1 epoch",
)


def trained_export(config: str, run: Path, overrides: list[str]) -> str:
    """The export of a config's run, which is trained where it is not there yet."""
    export = run / "export"
    if not export.exists():
        where = [f"run.dir={run.parent}", f"run.name={run.name}", *overrides]
        again = ["--resume"] if (run / "run.json").exists() else []
        jaxft = [sys.executable, "-m", "jaxft"]
        subprocess.run([*jaxft, "train", config, *where, "--quiet", *again], check=True)
        subprocess.run([*jaxft, "export", str(run), "--out", str(export)], check=True)
    return str(export)


def main() -> int:
    """Train all, print each seed's test accuracy, and record them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/domain_adapt"), help="run folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the adaptation")
    given = parser.parse_args()
    original = load_config(ADAPT).model.checkpoint
    with tempfile.TemporaryDirectory() as folder:
        starts = {
            "adapted": [f"model.checkpoint={trained_export(ADAPT, given.run, given.overrides)}"],
            "original": [f"model.checkpoint={original}"],
            "from scratch": write_scratch(original, Path(folder) / "drawn"),
        }
        variants = {name: [*RECIPE, *start] for name, start in starts.items()}
        scores = seeded_scores(SENTIMENT, variants, Path(folder), SEEDS)
    record("domain_gain", scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
