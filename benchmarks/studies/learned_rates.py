"""Learning rates that gradient descent finds, beside layer decay and the criteria of layers.

`python -m benchmarks.studies.learned_rates` learns a multiplier for each depth on each task of the
study of methods, measures every criterion of `jaxft layers` there, and writes both to
docs/studies/learned_rates.json and into the page. A draw is stored as it ends, so that the command
goes on where it was stopped. The scores of runs with the learned rates are
rows of `benchmarks.studies.methods`, which reads that file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

import jaxft
from benchmarks.studies.methods_rows import FULL, TASKS
from benchmarks.studies.page import DOCS, markdown, write_page
from jaxft.analysis.layer_criteria.story import layer_criteria
from jaxft.config.load import Config
from jaxft.device.process import prepare_process
from jaxft.storage.files import write_atomic
from jaxft.studies.tuning.problem import open_problem
from jaxft.studies.tuning.tune import Draw, learn_draw, tuned_of

RESULTS = DOCS / "learned_rates.json"
STEPS, ROUNDS, DRAWS, EVAL_BATCHES = 10, 6, 3, 6
CRITERIA_BATCHES = 8
BATCH = {"entities": ("data.batch_size=16",)}  # ten steps of 4 tweets are too few to learn from
RESAMPLES = 2000


def load_learned() -> dict[str, Any]:
    """Read what earlier calls learned: task -> its curve and criteria."""
    return {task: one for task, one in _stored().items() if "depths" in one}


def _stored() -> dict[str, Any]:
    """Read what earlier calls learned; of a task that is not finished there are draws alone."""
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return stored


def _store(task: str, learned: dict[str, Any]) -> None:
    write_atomic(RESULTS, json.dumps(_stored() | {task: learned}, indent=1).encode())


def groups_of(learned: dict[str, Any]) -> str:
    """Return an override with one group a depth at its learned multiplier."""
    pairs = zip(learned["depths"], learned["multipliers"], strict=True)
    groups = [f"{{name: d{n}, depth: [{n}, {n}], lr_mult: {rate:.4g}}}" for n, rate in pairs]
    return f"groups=[{', '.join(groups)}]"


def config_of(name: str) -> Config:
    """Return the config whose rates are learned: the middle rate, the same at all depths."""
    task = TASKS[name]
    overrides = [*task.for_all(), *BATCH.get(name, ()), f"optimizer.lr={FULL[1]}"]
    return jaxft.load_config(task.config, overrides)


def learn(name: str) -> None:
    """Learn a task's curve, and measure the criteria of its layers; store both."""
    config = config_of(name)
    problem = open_problem(config, STEPS, EVAL_BATCHES)
    courses = [Draw(**one) for one in _stored().get(name, {}).get("draws", ())]
    for number in range(len(courses), DRAWS):
        progress = partial(_print_round, name, number)
        courses.append(learn_draw(problem, number, STEPS, ROUNDS, progress))
        _store(name, {"draws": [asdict(one) for one in courses]})
    tuned = json.loads(tuned_of(problem, STEPS, courses).to_json())
    criteria = layer_criteria(config, CRITERIA_BATCHES, print, print).content()
    _store(name, tuned | {"criteria": by_block(criteria)})


def by_block(content: dict[str, Any]) -> dict[str, list[float]]:
    """Average each criterion over the matrices of a block: name -> `[blocks]`."""
    rows = content["matrices"]
    depths = sorted({row["depth"] for row in rows})
    return {
        name: [float(np.mean([row[name] for row in rows if row["depth"] == n])) for n in depths]
        for name in content["criteria"]
        if all(row[name] is not None for row in rows)
    }


def _print_round(task: str, draw: int, done: int, loss: float) -> None:
    print(f"{task}: draw {draw + 1}, round {done} of {ROUNDS}: eval loss {loss:.4f}", flush=True)


def decay_of(learned: dict[str, Any]) -> tuple[float, float, float, float]:
    """Fit the curve by layer decay, a line in the logarithm over the depths of the blocks.

    Returns:
        the factor a depth towards the embeddings, as `layer_decay.rate` is, its 95% interval over
        the draws (Student's t), and the share of the variance of the logarithms that the line
        explains.
    """
    depths = np.array(learned["depths"], float)
    ends = np.array([draw["logs"][-1] for draw in learned["draws"]])
    slopes = np.array([np.polyfit(depths, -end, 1)[0] for end in ends])
    reach = stats.t.ppf(0.975, len(ends) - 1) * slopes.std(ddof=1) / np.sqrt(len(ends))
    explained = np.corrcoef(depths, ends.mean(0))[0, 1] ** 2
    mean = slopes.mean()
    return np.exp(mean), np.exp(mean - reach), np.exp(mean + reach), explained


def correlations(learned: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Rank criteria by how their order of the blocks agrees with the learned rates.

    Returns:
        name -> Spearman's correlation of the mean curve, and the least and largest of the draws'.
    """
    ends = np.array([draw["logs"][-1] for draw in learned["draws"]])[:, 1:-1]
    found = {}
    for name, values in learned["criteria"].items():
        if np.ptp(values) == 0 or len(values) != ends.shape[1]:
            continue
        each = [float(stats.spearmanr(values, end).statistic) for end in ends]
        mean = float(stats.spearmanr(values, ends.mean(0)).statistic)
        found[name] = (mean, min(each), max(each))
    return dict(sorted(found.items(), key=lambda pair: -abs(pair[1][0])))


def table_of(name: str, learned: dict[str, Any]) -> str:
    """Return a task's curve and correlations in Markdown."""
    factor, low, high, explained = decay_of(learned)
    rows = [
        [depth, f"{rate:.2f}", f"{least:.2f} to {most:.2f}"]
        for depth, rate, least, most in zip(
            learned["depths"], learned["multipliers"], learned["low"], learned["high"], strict=True
        )
    ]
    pairs = [
        [criterion, f"{mean:+.2f}", f"{least:+.2f} to {most:+.2f}"]
        for criterion, (mean, least, most) in correlations(learned).items()
    ]
    return "\n\n".join(
        [
            f"### {name}",
            f"Eval loss after {learned['steps']} steps: {learned['loss_before']:.4f} with one rate "
            f"for all depths, {learned['loss_after']:.4f} with the learned ones. As layer decay: a "
            f"factor of {factor:.3f} a depth ({low:.3f} to {high:.3f}), which explains "
            f"{explained:.0%} of the curve.",
            markdown(["depth", "multiplier", "95% interval over draws"], rows),
            markdown(["criterion", "rank correlation over blocks", "of the draws"], pairs),
        ]
    )


def draw(figure: Any, stored: dict[str, Any]) -> None:
    """Draw the multipliers over the depth, a panel a task."""
    panels = figure.subplots(1, max(len(stored), 1), squeeze=False)[0]
    for axes, (name, learned) in zip(panels, stored.items(), strict=False):
        depths = learned["depths"]
        axes.fill_between(depths, learned["low"], learned["high"], color="C0", alpha=0.2)
        for course in learned["draws"]:
            axes.plot(depths, np.exp(course["logs"][-1]), color="C0", alpha=0.4, linewidth=0.8)
        axes.plot(depths, learned["multipliers"], "o-", color="C0")
        axes.set(title=name, xlabel="depth", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("learned multiplier")


def main() -> None:
    """Learn what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), action="append")
    asked = parser.parse_args()
    prepare_process()
    for name in asked.task or list(TASKS):
        if name not in load_learned():
            learn(name)
    stored = load_learned()
    tables = "\n\n".join(table_of(name, learned) for name, learned in stored.items())
    write_page("learned_rates", tables, lambda figure: draw(figure, stored), size=(7, 3))


if __name__ == "__main__":
    main()
