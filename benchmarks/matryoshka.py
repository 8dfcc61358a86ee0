"""What the Matryoshka loss is worth: recall of shortened vectors, with and without it.

`python -m benchmarks.matryoshka` trains `configs/embed.yaml` for 4 epochs with the loss at all 384
dimensions alone and at 384, 128, 32 and 16, with seeds 0, 1 and 2, and scores the test rows by the
leading dimensions of their vectors.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.measure import record
from benchmarks.seeds import seeds
from jaxft.data.sources.open import open_source
from jaxft.inference.predict import predict
from jaxft.metrics.retrieval import pair_scores
from jaxft.tasks.embedding.losses import cut
from jaxft.tasks.embedding.text_tuples import numbered

CONFIG, TEST = "configs/embed.yaml", "jsonl:assets/dialogues/test.jsonl"
DIMS = (384, 128, 32, 16)
SEEDS = 3
RECIPE = (
    "train.length=4 epochs",
    "train.evaluate_every=1 epoch",
    "checkpoint.every=1 epoch",
    "report.before=false",
)
VARIANTS = {
    "384 alone": (),
    "Matryoshka": (f"task.matryoshka_dims={list(DIMS)}",),
}


def recalls(run: str | Path) -> dict[int, tuple[float, float]]:
    """The recall at 1 and 10 of the test rows' questions at each width, from whole vectors."""
    rows = [row for _, row in open_source(TEST).each(["prompt", "answer"])]
    texts = [row[name] for name in ("prompt", "answer") for row in rows]
    vectors = np.array([one["vector"] for one in predict(run, texts)], np.float32)
    numbers = numbered([(row["prompt"], row["answer"]) for row in rows])
    by_width = {}
    for dim in DIMS:
        anchors, items = np.split(np.asarray(cut(vectors, dim)), 2)
        scores = pair_scores(anchors, items, numbers, numbers[:, 1])
        by_width[dim] = scores["recall_at_1"], scores["recall_at_10"]
    return by_width


def main() -> None:
    """Train, score and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the runs go; a temporary one if not set")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="jaxft-matryoshka-"))
    each: dict[str, list[dict[int, tuple[float, float]]]] = {name: [] for name in VARIANTS}
    for seed in range(SEEDS):
        for name, overrides in VARIANTS.items():
            run = f"{name.replace(' ', '-')}-{seed}"
            if not (folder / run / "result.json").exists():
                words = ["-m", "jaxft", "train", CONFIG, "--quiet", *seeds(seed), *RECIPE]
                where = [f"run.dir={folder}", f"run.name={run}", *overrides]
                subprocess.run([sys.executable, *words, *where], check=True)
            each[name].append(recalls(folder / run))
            print(seed, name, each[name][-1], flush=True)
    means = {
        f"recall_at_{most}": {
            name: {str(dim): round(mean(one[dim][index] for one in runs), 3) for dim in DIMS}
            for name, runs in each.items()
        }
        for index, most in enumerate((1, 10))
    }
    print(means)
    record("matryoshka", {**means, "seeds": SEEDS})


if __name__ == "__main__":
    main()
