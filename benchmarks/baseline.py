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
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import jaxft
from benchmarks.measure import recorded
from jaxft.config.load import Config
from jaxft.engine.inputs import Split
from jaxft.engine.setup import build
from jaxft.metrics.classification import classification_scores
from jaxft.runs.folder import open_run

ROWS = 64
POOLED = "logistic regression on the frozen pooled output"
MEAN = "logistic regression on the frozen mean of the tokens"
TWIN = "the same recipe in PyTorch, mean of 3 seeds (make bench)"


def baselines(config: Config) -> dict[str, float]:
    """Test accuracies of logistic regression on two kinds of frozen features, by their name.

    Args:
        config: a run's config; its checkpoint, rows and length limit are used, nothing else.
    """
    found = regressions(config, ("test",))
    return {name: scores["test"]["accuracy"] for name, scores in found.items()}


def best_regression(config: Config) -> tuple[str, dict[str, float]]:
    """The features that are best on the eval rows by accuracy, and their scores on the test rows.

    Args:
        config: as in `baselines`.
    """
    found = regressions(config, ("eval", "test"))
    name = max(found, key=lambda name: found[name]["eval"]["accuracy"])
    return name, found[name]["test"]


def regressions(config: Config, scored: tuple[str, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of logistic regression: by features, by split.

    Args:
        config: as in `baselines`; its task tells one class of a text or an image.
        scored: splits.

    Returns:
        The features are what a fresh head sees (the pooled output, or that of the class token) and
        the mean of the last block's vectors.
    """
    built = build(config)
    model = jaxft.load(
        config.model.checkpoint, ignore=config.model.ignore, image_size=config.model.image_size
    )
    labels = {name: np.asarray(split.examples.labels) for name, split in built.splits.items()}
    features = {name: _features(model, built.splits[name]) for name in ("train", *scored)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in (POOLED, MEAN):
        regression = LogisticRegression(max_iter=5000).fit(features["train"][name], labels["train"])
        found[name] = {}
        for split in scored:
            chances = regression.predict_proba(features[split][name])
            right = float((chances.argmax(axis=1) == labels[split]).mean())
            scores = classification_scores(chances, labels[split])
            found[name][split] = {"accuracy": right, **scores}
    return found


def _features(model: jaxft.Model, split: Split) -> dict[str, np.ndarray]:
    """Every example's features, `[examples, width]` by name; short ones go with short ones."""

    @jax.jit
    def compute(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        out = model.apply(model.params, rows)
        states = out["last_hidden_state"]  # [B, T, D]
        mask = rows.get("attention_mask")
        kept = jnp.ones(states.shape[:2]) if mask is None else mask
        mean = (states * kept[..., None]).sum(1) / kept.sum(1)[:, None]
        return {POOLED: out.get("pooler_output", states[:, 0]), MEAN: mean}

    examples = split.examples
    order = np.argsort(examples.lengths, kind="stable")
    found: dict[str, list[np.ndarray]] = {POOLED: [], MEAN: []}
    for first in range(0, len(order), ROWS):
        chosen = order[first : first + ROWS]
        index = np.resize(chosen, (ROWS, 1))  # the last batch repeats examples to keep its shape
        width = -(-int(examples.lengths[chosen].max()) // 32) * 32  # few shapes to compile
        for name, values in compute(_read(examples.collate(index, width))).items():
            found[name].append(np.asarray(values)[: len(chosen)])
    back = np.argsort(order)
    return {name: np.concatenate(parts)[back] for name, parts in found.items()}


def _read(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a model without a head reads of a batch with an example a row."""
    if "pixel_values" in rows:
        return {"pixel_values": rows["pixel_values"]}
    return {"input_ids": rows["input_ids"], "attention_mask": rows["segment_ids"]}


def main() -> None:
    """Compute the baselines of a run, print them, and add them to its result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    run = parser.parse_args().run
    warnings.simplefilter("error", ConvergenceWarning)
    folder, config = open_run(run), run_config(run)
    result = folder.read_json("result.json")
    scores = baselines(config)
    measured = recorded("seeds")
    if measured and measured["recipe"] == recipe(config):
        scores[TWIN] = float(np.mean(measured["torch"]))
    folder.write_json("result.json", {**result, "baselines": scores})
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
