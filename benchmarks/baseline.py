"""What fine-tuning is worth: logistic regression on the frozen checkpoint's features.

`python -m benchmarks.baseline RUN` uses the run's own training and test rows, prints both test
accuracies beside the run's, and writes them into RUN/result.json, where the report shows them.
The same recipe's accuracy in PyTorch stands beside them where `benchmarks.seeds` has measured it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import jaxft
from benchmarks.measure import recorded
from jaxft.config import Config
from jaxft.engine.build import build
from jaxft.engine.inputs import Split
from jaxft.files import write_atomic

ROWS = 64
POOLED = "logistic regression on the frozen pooled output"
MEAN = "logistic regression on the frozen mean of the tokens"
TWIN = "the same recipe in PyTorch, mean of 3 seeds (make bench)"


def baselines(config: Config) -> dict[str, float]:
    """Test accuracies of logistic regression on two kinds of frozen features.

    Args:
        config: a run's config; its checkpoint, rows and length limit are used, nothing else.

    Returns:
        Accuracy by the features' name: the pooled output (what a fresh head sees) and the mean of
        the last block's token vectors.
    """
    built = build(config)
    model = jaxft.load(config.model.checkpoint, ignore=config.model.ignore)
    train, test = (_features(model, built.splits[name]) for name in ("train", "test"))
    labels = {name: built.splits[name].examples.labels for name in ("train", "test")}
    scores = {}
    for name in (POOLED, MEAN):
        regression = LogisticRegression(max_iter=2000).fit(train[name], labels["train"])
        scores[name] = float(regression.score(test[name], labels["test"]))
    return scores


def _features(model: jaxft.Model, split: Split) -> dict[str, np.ndarray]:
    """Every example's features, `[examples, width]` by name; short ones go with short ones."""

    @jax.jit
    def compute(ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
        out = model.apply(model.params, {"input_ids": ids, "attention_mask": mask})
        kept = mask[..., None]  # [B, T, 1]
        mean = (out["last_hidden_state"] * kept).sum(1) / kept.sum(1)
        return {POOLED: out["pooler_output"], MEAN: mean}

    examples = split.examples
    order = np.argsort(examples.lengths, kind="stable")
    found: dict[str, list[np.ndarray]] = {POOLED: [], MEAN: []}
    for first in range(0, len(order), ROWS):
        chosen = order[first : first + ROWS]
        index = np.resize(chosen, (ROWS, 1))  # the last batch repeats examples to keep its shape
        width = -(-int(examples.lengths[chosen].max()) // 32) * 32  # few shapes to compile
        rows = examples.collate(index, width)
        for name, values in compute(rows["input_ids"], rows["segment_ids"]).items():
            found[name].append(np.asarray(values)[: len(chosen)])
    back = np.argsort(order)
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}


def main() -> None:
    """Compute the baselines of a run, print them, and add them to its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    run = parser.parse_args().run
    warnings.simplefilter("error", ConvergenceWarning)
    result = json.loads((run / "result.json").read_text())
    config = run_config(run)
    scores = baselines(config)
    measured = recorded("seeds")
    if measured and measured["recipe"] == recipe(config):
        scores[TWIN] = float(np.mean(measured["torch"]))
    write_atomic(run / "result.json", json.dumps({**result, "baselines": scores}, indent=2) + "\n")
    show({"jaxft, fine-tuned": result["metrics"]["accuracy"], **scores})


def run_config(run: Path) -> Config:
    """The resolved config that a run folder holds."""
    return jaxft.load_config(run / "config.yaml")


def recipe(config: Config) -> str:
    """A digest of what a config says beside the defaults, but for its name, folder and seeds."""
    rest = config.model_dump(mode="json", exclude_defaults=True, exclude={"run"})
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def show(scores: Mapping[str, float]) -> None:
    """Print test accuracies, one a line."""
    print("test accuracy")
    for name, score in scores.items():
        print(f"  {score:.3f}  {name}")


if __name__ == "__main__":
    main()
